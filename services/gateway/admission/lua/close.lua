-- Ends a lease and settles what was charged; see AdmissionStore.close.
-- ARGV: claim, owner, request_count, charged, doubtful 0|1. Returns 1, or 0 when the lease was not there any more.

local holder, reserved = lease_of(ARGV[1])
local is_held = holder == ARGV[2]
if ARGV[5] == '1' or not is_held then
  lose_balance()
end
if is_held then
  remove_lease(ARGV[1], reserved)
  account.requests = account.requests + tonumber(ARGV[3])
  account.charged = account.charged + tonumber(ARGV[4])
end
if is_changed then
  save()
end
return is_held and 1 or 0
