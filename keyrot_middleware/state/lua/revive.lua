-- Bring a key back: forget what rests it, and what leases granted before this say of its value.
--
-- ARGV: clock ('' but in tests), key, its project whose retirement ends with the key's old value
--       ('' for none), and the names of other records of cooldowns to forget as well, those of its
--       project and account, where a person asked for it.

local now, key, named = clock(ARGV[1]), ARGV[2], ARGV[3]

local health_name = at('h:' .. key)
local h = health(redis.call('GET', health_name))
-- A key without a project or account is its own, and so comes back from its retirement too.
local own_account, own_project, own = rest_names(key, key, key)
local account, project = rest_names('project:key:' .. key, 'key:' .. key, key) -- keysfile.py
local names = { own_account, own_project, account, project }
if named ~= '' then
  names[5] = at('c:p:' .. named)
end
for _, name in ipairs(names) do
  local text = redis.call('GET', name)
  local record, ended = rests(text), false
  for scope, rest in pairs(record) do
    if rest['until'] == 'inf' then
      record[scope], ended = nil, true
    end
  end
  if ended then
    keep_rests(name, record, now)
  end
end
redis.call('DEL', own)
for place = 4, #ARGV do
  redis.call('DEL', at(ARGV[place]))
end
h[REVIVED] = h[REVIVED] + 1
keep_health(health_name, h)
