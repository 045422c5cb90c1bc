-- Return {dropped, a list per key}: last_used, successes, errors, value, last_error; absent ones are nil.
--
-- ARGV: clock ('' except in tests), keys.

local found = {}
for i = 2, #ARGV do
  found[i - 1] = call('HMGET', full_name('health:' .. ARGV[i]), 'last_used', 'successes', 'errors', 'value', 'last_error')
end
return { dropped, found }
