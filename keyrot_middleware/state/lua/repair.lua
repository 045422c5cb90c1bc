-- Delete records that cannot be read, so that they are written anew; return their names.
--
-- ARGV: '', full names of records.

local function are_numbers(list, last)
  for i = 1, math.min(#list, last) do
    if type(list[i]) ~= 'number' then
      return false
    end
  end
  return true
end

local function is_cooldown(cooldown)
  return type(cooldown) == 'table'
    and type(cooldown['until']) == 'string' and parse_seconds(cooldown['until'])
    and type(cooldown.strikes) == 'number' and type(cooldown.failure) == 'string'
    and type(cooldown.waitable) == 'boolean' and type(cooldown.probe) == 'string'
    and tonumber(cooldown.probe_until)
end

local shapes = {}

function shapes.quota(record)
  return (#record == DAY_REQUESTS or #record == LEARNED_RPD) and are_numbers(record, #record)
end

function shapes.health(record)
  local failure = record[LAST_ERROR]
  return #record >= ERRORS and are_numbers(record, ERRORS)
    and (failure == nil or type(failure) == 'string')
end

function shapes.cooldown(record)
  for scope, cooldown in pairs(record) do
    if type(scope) ~= 'string' or not is_cooldown(cooldown) then
      return false
    end
  end
  return true
end

function shapes.spending(record)
  if #record ~= 4 or not are_numbers(record, 2) or type(record[HIGHEST]) ~= 'table'
    or type(record[RESERVED]) ~= 'table' then
    return false
  end
  for _, highest in pairs(record[HIGHEST]) do
    if type(highest) ~= 'number' then
      return false
    end
  end
  for _, one in pairs(record[RESERVED]) do
    if type(one) ~= 'table' or type(one[1]) ~= 'number' or type(one[2]) ~= 'string' then
      return false
    end
  end
  return true
end

function shapes.owner(record)
  return #record == 2 and type(record[1]) == 'string' and type(record[2]) == 'string'
end

local function is_readable(name)
  local type_name = redis.call('TYPE', name).ok
  local record_type = string.match(name, '^(%a+)', #KEYS[1] + 2)
  if type_name == 'none' then
    return true
  elseif record_type == 'lease' or record_type == 'buckets' then
    return type_name == 'zset'
  elseif record_type == 'configured' then
    return type_name == 'hash'
  elseif type_name ~= 'string' then
    return false
  elseif not shapes[record_type] then
    return true
  end
  local decoded, record = pcall(cjson.decode, redis.call('GET', name))
  return decoded and type(record) == 'table' and shapes[record_type](record)
end

local deleted = {}
for i = 2, #ARGV do
  if not is_readable(ARGV[i]) then
    redis.call('DEL', ARGV[i])
    deleted[#deleted + 1] = ARGV[i]
  end
end
return deleted
