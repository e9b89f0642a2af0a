-- Prolongs a lease, or puts it back if it was lost; see AdmissionStore.renew.
-- ARGV: claim, owner, reserve, lease_ms. Returns 'renewed', 'restored' or 'taken'.

local claim, owner, reserve, expires = ARGV[1], ARGV[2], tonumber(ARGV[3]), now + tonumber(ARGV[4])
local holder = lease_of(claim)
if not holder then
  open_lease(claim, owner, reserve, expires)
  save()
  return 'restored'
end
if holder ~= owner then
  return 'taken'
end
set_expiry(claim, expires)
save()
return 'renewed'
