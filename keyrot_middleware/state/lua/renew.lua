-- Renew the leases of calls in flight that count in `max_concurrency`.
--
-- ARGV: clock ('' except in tests), lease seconds; per lease: the record of its key, its id.

local now, lease_s = clock(ARGV[1]), tonumber(ARGV[2])
for i = 3, #ARGV, 2 do
  local leases = full_name('lease:' .. ARGV[i])
  -- XX: the call may have ended meanwhile.
  call('ZADD', leases, 'XX', format_exact(now + lease_s), ARGV[i + 1])
  redis.call('PEXPIRE', leases, math.ceil(lease_s * 1000))
end
return { dropped }
