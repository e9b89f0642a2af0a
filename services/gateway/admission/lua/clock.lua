-- The server's time in milliseconds since 1970, the same for all gateways.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
