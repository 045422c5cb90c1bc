-- Run the commands of a batch of activity, once.
--
-- ARGV: clock ('' except in tests), id of the batch, commands (JSON).

local name = replies_name(ARGV[2])
if not call('HGET', name, ARGV[2]) then
  for _, command in ipairs(cjson.decode(ARGV[3])) do
    redis.call(unpack(command))
  end
  save_reply(name, ARGV[2], SETTLED)
end
return { dropped }
