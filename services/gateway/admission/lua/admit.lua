-- One decision about bucket, concurrency, quota and credits; see AdmissionStore.admit.
-- ARGV: claim, owner, reserve, lease_ms, per_minute, burst, concurrent, requests or -1, millicredits or -1, enforced 0|1
-- Returns {outcome, limit reached or '', retry_ms or -1, expired leases, expired millicredits, usage...}

local claim, owner = ARGV[1], ARGV[2]
local reserve, lease_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local per_minute, burst, concurrent = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local monthly_requests, monthly_millicredits = tonumber(ARGV[8]), tonumber(ARGV[9])
local enforced = ARGV[10] == '1'

local expired, freed = sweep()

local function answer(outcome, reached, retry_ms)
  if is_changed then
    save()
  end
  return reply({ outcome, reached or '', retry_ms or -1, expired, freed })
end

local holder = lease_of(claim)
if holder then
  return answer(holder == owner and 'granted' or 'running')
end
if account.known ~= 1 then
  return answer('unknown')
end

-- Where the clock went back, the bucket goes on from there with what it had.
if account.bucket and now < account.bucket_ms then
  account.bucket_ms, is_changed = now, true
end
local units = burst * UNITS_PER_REQUEST
if account.bucket then
  units = math.min(units, account.bucket + (now - account.bucket_ms) * per_minute)
end

-- The limit in the way; of several the one that lasts longest.
local running = redis.call('ZCARD', LEASES)
local reached
if monthly_millicredits >= 0 and account.charged + account.held + reserve > monthly_millicredits + account.granted then
  reached = 'credits'
elseif monthly_requests >= 0 and account.requests + running >= monthly_requests then
  reached = 'quota'
elseif units < UNITS_PER_REQUEST then
  reached = 'requests'
elseif running >= concurrent then
  reached = 'concurrency'
end
if reached and enforced then
  return answer('refused', reached, reached == 'requests' and math.ceil((UNITS_PER_REQUEST - units) / per_minute) or -1)
end

account.bucket, account.bucket_ms = math.max(0, units - UNITS_PER_REQUEST), now
open_lease(claim, owner, reserve, now + lease_ms)
return answer('granted', reached)
