-- Renew the places in `max_concurrency` of calls under way: their worker shows that it lives.
--
-- ARGV: clock ('' but in tests), lease seconds; of each lease: the record of its key, its id.

local now, lease_s = clock(ARGV[1]), tonumber(ARGV[2])
for place = 3, #ARGV, 2 do
  local leases = at('lease:' .. ARGV[place])
  -- Only where it still is: its call may have ended meanwhile.
  redis.call('ZADD', leases, 'XX', exact(now + lease_s), ARGV[place + 1])
  redis.call('PEXPIRE', leases, math.ceil(lease_s * 1000))
end
