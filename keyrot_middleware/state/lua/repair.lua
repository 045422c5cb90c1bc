-- Drop records that cannot be read, so that they are written anew; give their names.
--
-- ARGV: '', names of records, whole.

local function numbers(list, last)
  for place = 1, math.min(#list, last) do
    if type(list[place]) ~= 'number' then
      return false
    end
  end
  return true
end

local function is_cooldown(rest)
  return type(rest) == 'table' and type(rest['until']) == 'string' and seconds(rest['until'])
    and type(rest.strikes) == 'number' and type(rest.failure) == 'string'
    and type(rest.waitable) == 'boolean' and type(rest.probe) == 'string'
    and tonumber(rest.probe_until)
end

local shapes = {}

function shapes.quota(record)
  local pace = record[PACE]
  return #record > 0 and numbers(record, PACE - 1)
    and (pace == nil or (type(pace) == 'table' and numbers(pace, #pace)))
end

function shapes.health(record)
  local failure = record[LAST_ERROR]
  return #record >= ERRORS and numbers(record, ERRORS)
    and (failure == nil or type(failure) == 'string')
end

function shapes.cooldown(record)
  for scope, rest in pairs(record) do
    if type(scope) ~= 'string' or not is_cooldown(rest) then
      return false
    end
  end
  return true
end

function shapes.owner(record)
  return #record == 2 and type(record[1]) == 'string' and type(record[2]) == 'string'
end

local function readable(name)
  local stored = redis.call('TYPE', name).ok
  local kind = string.match(name, '^(%a+)', #KEYS[1] + 2)
  if stored == 'none' then
    return true
  elseif kind == 'lease' or kind == 'buckets' then
    return stored == 'zset'
  elseif kind == 'configured' then
    return stored == 'hash'
  elseif stored ~= 'string' then
    return false
  elseif not shapes[kind] then
    return true
  end
  local fine, record = pcall(cjson.decode, redis.call('GET', name))
  return fine and type(record) == 'table' and shapes[kind](record)
end

local dropped = {}
for place = 2, #ARGV do
  if not readable(ARGV[place]) then
    redis.call('DEL', ARGV[place])
    dropped[#dropped + 1] = ARGV[place]
  end
end
return dropped
