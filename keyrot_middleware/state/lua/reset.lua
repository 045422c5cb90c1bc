-- Forget what cools down a key, its project and its account, and what was learned of their limits.
--
-- ARGV: clock ('' but in tests), how many records of cooldowns, their names, and the projects whose
--       learned limits are forgotten.

local now, cooldowns = clock(ARGV[1]), tonumber(ARGV[2])

for place = 3, 2 + cooldowns do
  redis.call('DEL', at(ARGV[place]))
end
local buckets = redis.call('ZRANGE', at('buckets'), 0, -1)
for place = 3 + cooldowns, #ARGV do
  for _, bucket in ipairs(buckets) do
    local name = quota_at(ARGV[place], bucket)
    local q = quota(redis.call('GET', name))
    if q[LEARNED_UNTIL] or q[KIND] then
      q[LEARNED_UNTIL], q[KIND], q[PACE_UNTIL] = nil, nil, nil
      keep_quota(name, q, now)
    end
  end
end
