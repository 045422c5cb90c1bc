-- End a lease whose reply was lost: the caller does not know whether it was granted.
--
-- KEYS: the pool, the replies with that of the lease.
-- ARGV: clock ('' except in tests), id of the lease.
-- Returns {dropped, and the reply of acquire.lua}, so that the caller can settle the lease; only
-- {dropped} if it was not granted, or is settled. acquire.lua then grants it no more.

local reply = call('HGET', KEYS[2], ARGV[2])
if not reply then
  save_reply(KEYS[2], ARGV[2], SETTLED)
elseif not is_settled(reply) then
  return { dropped, unpack(cjson.decode(reply)) }
end
return { dropped }
