-- Count requests that were sent while this server was unreachable; no limit is checked.
--
-- ARGV: clock ('' except in tests), next Pacific midnights (JSON, ascending), project, bucket,
--       requests and tokens of the current minute, requests of the current day.

local now, midnights = clock(ARGV[1]), ARGV[2]
local name = full_quota_name(ARGV[3], ARGV[4])
local requests, tokens, day_requests = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local q = read_quota(redis.call('GET', name))
local near_boundary = advance(q, now, midnights)
reserve(q, now, near_boundary, requests, tokens)
q[DAY_REQUESTS] = q[DAY_REQUESTS] + day_requests
save_quota(name, q, now)
record_bucket(ARGV[4], now)
