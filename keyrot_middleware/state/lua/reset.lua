-- Delete the cooldowns of a key, its project and its account, and learned limits of projects.
--
-- ARGV: clock ('' except in tests), number of cooldown records, their names, and the projects whose
--       learned limits are deleted.

local now, count = clock(ARGV[1]), tonumber(ARGV[2])

for i = 3, 2 + count do
  redis.call('DEL', full_name(ARGV[i]))
  call('ZREM', full_name('cooling'), full_name(ARGV[i]))
end
local buckets = call('ZRANGE', full_name('buckets'), 0, -1)
for i = 3 + count, #ARGV do
  for _, bucket in ipairs(buckets) do
    local name = full_quota_name(ARGV[i], bucket)
    local q = read_quota(name, read_text(name))
    if q[LEARNED_UNTIL] then
      q[LEARNED_UNTIL] = nil
      save_quota(name, q, now)
    end
  end
end
return { dropped }
