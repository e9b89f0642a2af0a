-- What all verbs share: keys, month, leases. Follows clock.lua, which sets `now`. The rules are those of account_book.py.
--
-- KEYS[1]  hash    the account: bucket, bucket_ms, period, requests, charged, granted, held, known, revision
-- KEYS[2]  sorted  claim id -> when its lease expires (ms)
-- KEYS[3]  hash    claim id -> "owner:reserved"
-- All three carry the account as hash tag, so that they live on one node of a cluster.
-- Times are the server's, in milliseconds; amounts are millicredits; all numbers are whole and below 2^53.

local ACCOUNT, LEASES, RESERVED = KEYS[1], KEYS[2], KEYS[3]
local UNITS_PER_REQUEST = 60000
local FORGET_AFTER_MS = 24 * 3600 * 1000

-- Months since the year 0, from days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date
-- Algorithms", civil_from_days).
local function month_of(ms)
  local z = math.floor(ms / 86400000) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return year * 12 + month - 1
end

local FIELDS = { 'bucket', 'bucket_ms', 'period', 'requests', 'charged', 'granted', 'held', 'known', 'revision' }
local account = {}
for index, value in ipairs(redis.call('HMGET', ACCOUNT, unpack(FIELDS))) do
  account[FIELDS[index]] = tonumber(value or nil)
end
local is_new = account.revision == nil
if is_new then
  -- The first revision differs from those of an account that the server lost.
  account = { bucket_ms = now, period = month_of(now), requests = 0, charged = 0, granted = 0, held = 0, known = 0, revision = now }
  for _, value in ipairs(redis.call('HVALS', RESERVED)) do
    account.held = account.held + tonumber(string.match(value, ':(%d+)$'))
  end
end
local is_changed = false

local function save()
  local values = {}
  for _, name in ipairs(FIELDS) do
    if account[name] then
      values[#values + 1] = name
      values[#values + 1] = account[name]
    end
  end
  redis.call('HSET', ACCOUNT, unpack(values))
  redis.call('PEXPIRE', ACCOUNT, FORGET_AFTER_MS)
end

-- A new month begins at zero; what runs keeps what it reserved.
if month_of(now) > account.period then
  account.period, account.requests, account.charged, account.granted = month_of(now), 0, 0, 0
  account.revision = account.revision + 1
  save()
end

-- Owner and reservation of a lease, or nil.
local function lease_of(claim)
  local value = redis.call('HGET', RESERVED, claim)
  if not value then
    return nil
  end
  local owner, reserved = string.match(value, '^(.*):(%d+)$')
  return owner, tonumber(reserved)
end

local function set_expiry(claim, expires)
  redis.call('ZADD', LEASES, expires, claim)
  redis.call('PEXPIRE', LEASES, FORGET_AFTER_MS)
  redis.call('PEXPIRE', RESERVED, FORGET_AFTER_MS)
end

local function open_lease(claim, owner, reserved, expires)
  redis.call('HSET', RESERVED, claim, owner .. ':' .. string.format('%.0f', reserved))
  set_expiry(claim, expires)
  account.held = account.held + reserved
  account.revision, is_changed = account.revision + 1, true
end

local function remove_lease(claim, reserved)
  redis.call('ZREM', LEASES, claim)
  redis.call('HDEL', RESERVED, claim)
  account.held = account.held - reserved
  account.revision, is_changed = account.revision + 1, true
end

-- Until the ledger tells it again.
local function lose_balance()
  if account.known == 1 then
    account.known, account.revision, is_changed = 0, account.revision + 1, true
  end
end

-- Ends expired leases; returns how many and what they had reserved.
local function sweep()
  local count, freed = 0, 0
  if account.held > 0 and redis.call('EXISTS', LEASES) == 0 then
    -- The server dropped a key under memory pressure: nothing runs, so nothing is held.
    redis.call('DEL', RESERVED)
    account.held, account.revision, is_changed = 0, account.revision + 1, true
  end
  for _, claim in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now)) do
    local _, reserved = lease_of(claim)
    reserved = reserved or 0
    remove_lease(claim, reserved)
    count, freed = count + 1, freed + reserved
  end
  if count > 0 then
    lose_balance()
  end
  return count, freed
end

-- `head` followed by the fields of Usage; -1 stands for a bucket that was never used.
local function reply(head)
  local usage = { now, account.period, account.bucket or -1, account.bucket_ms, redis.call('ZCARD', LEASES),
    account.requests, account.charged, account.held, account.granted }
  for _, value in ipairs(usage) do
    head[#head + 1] = value
  end
  return head
end
