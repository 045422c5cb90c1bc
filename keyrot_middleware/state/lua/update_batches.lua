-- Record how long batches of a project count as pending.
--
-- ARGV: clock ('' except in tests), project, how many may be pending (-1: any number), how many
--       are kept, for how many seconds at least, then for each batch its digest and the seconds
--       for which it counts; 0: it has ended.
--
-- Returns 1; 0 if too many are pending, and nothing is recorded.

local now = clock(ARGV[1])
local name, most = full_name('batches:' .. ARGV[2]), tonumber(ARGV[3])
if most >= 0 and redis.call('ZCOUNT', name, '(' .. now, '+inf') >= most then
  return 0
end
for i = 6, #ARGV, 2 do
  local seconds = tonumber(ARGV[i + 1])
  if seconds > 0 then
    redis.call('ZADD', name, format_exact(now + seconds), ARGV[i])
  else
    redis.call('ZREM', name, ARGV[i])
  end
end
redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
redis.call('ZREMRANGEBYRANK', name, 0, -tonumber(ARGV[4]) - 1)
redis.call('EXPIRE', name, ARGV[5])
return 1
