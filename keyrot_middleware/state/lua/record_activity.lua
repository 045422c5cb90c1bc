-- Run the commands of a batch of activity, once.
--
-- KEYS: the pool, the replies with that of this batch.
-- ARGV: clock ('' except in tests), id of the batch, commands (JSON).

if not call('HGET', KEYS[2], ARGV[2]) then
  for _, command in ipairs(cjson.decode(ARGV[3])) do
    redis.call(unpack(command))
  end
  save_reply(KEYS[2], ARGV[2], SETTLED)
end
return { dropped }
