-- End a lease whose reply was lost: the caller does not know whether it was granted.
--
-- ARGV: clock ('' except in tests), id of the lease.
-- Returns {dropped, and the text of acquire.lua}, so that the caller can settle the lease; only
-- {dropped} if it was not granted, or is settled. acquire.lua then grants it no more.

local name = replies_name(ARGV[2])
local reply = call('HGET', name, ARGV[2])
if not reply then
  save_reply(name, ARGV[2], SETTLED)
elseif not is_settled(reply) then
  return { dropped, reply }
end
return { dropped }
