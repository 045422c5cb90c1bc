-- Count the pending batches of projects.
--
-- ARGV: clock ('' except in tests), projects.

local now = clock(ARGV[1])
local counts = {}
for i = 2, #ARGV do
  counts[#counts + 1] = redis.call('ZCOUNT', full_name('batches:' .. ARGV[i]), '(' .. now, '+inf')
end
return counts
