-- Count what was sent without asking, while this server was away: nothing is refused.
--
-- ARGV: clock ('' but in tests), next Pacific midnights (JSON, ascending), project, bucket,
--       requests and tokens of the minute that runs, requests of the day that runs.

local now, midnights = clock(ARGV[1]), ARGV[2]
local name = quota_at(ARGV[3], ARGV[4])
local requests, tokens, day_requests = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local q = quota(redis.call('GET', name))
local edge = roll(q, now, midnights)
book(q, now, edge, requests, tokens)
q[DAY_REQUESTS] = q[DAY_REQUESTS] + day_requests
keep_quota(name, q, now)
list_bucket(ARGV[4], now)
