-- Replaces the balance if nothing changed meanwhile; see AdmissionStore.set_balance.
-- ARGV: revision, period, requests, charged, granted. Returns 1 or 0.

if tonumber(ARGV[1]) ~= (is_new and 0 or account.revision) or tonumber(ARGV[2]) ~= account.period then
  return 0
end
account.requests, account.charged, account.granted = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
account.known = 1
account.revision = account.revision + 1
save()
return 1
