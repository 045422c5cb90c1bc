-- Let go of what was lent to nobody: the answer to who asked for it was lost on its way.
-- What was booked for it stays so, for its request may have been sent all the same.
--
-- ARGV: clock ('' but in tests); of each lease: its id, how many keys it may be of, and of each key
--       names of records: the rests of its account, its project and its own; its leases under way.

local now, EACH = clock(ARGV[1]), 4

local function let_go(lease, name)
  local record, touched = rests(redis.call('GET', name)), false
  for _, rest in pairs(record) do
    if rest.probe == lease then
      rest.probe, rest.probe_until, touched = '', '0', true
    end
  end
  if touched then
    keep_rests(name, record, now)
  end
end

local place = 2
while ARGV[place] do
  local lease, keys = ARGV[place], tonumber(ARGV[place + 1])
  for _ = 1, keys do
    for name = place + 2, place + EACH do
      let_go(lease, ARGV[name])
    end
    redis.call('ZREM', ARGV[place + 1 + EACH], lease)
    place = place + EACH
  end
  place = place + 2
end
