-- The account as it is, for showing and correcting it; see AdmissionStore.snapshot.
-- Revision 0 is that of an account which the server does not know. Returns {known 0|1, revision, [claims], usage...}

return reply({ account.known, is_new and 0 or account.revision, redis.call('HKEYS', RESERVED) })
