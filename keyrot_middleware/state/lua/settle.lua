-- Book what became of a lease: true tokens, concurrency, cooldown, learned limits, owners, counts.
--
-- ARGV:  1 clock ('' but in tests)           2 the asking host's clock, for the times of a verdict
--        3 key  4 project  5 billing account  6 bucket  7 verb  8 model as asked for
--        9 kind (success, failure, abandoned, unsent)   10 true input tokens, '' where unknown
--       11 lease id, '' where nothing was booked here: a failure that was reported by hand
--       12 granted at  13 minute  14 edge  15 day's end  16 revived  17 held
--       18 requests reserved  19 tokens reserved
--       20 verdict (JSON), '' where there is none
--       21 and on: name's digest, seconds to keep it: who owns what
--       the last five: names of records, as acquire.lua has them of a candidate
-- Gives until when the scope of the failure rests, by the asking host's clock; nil for nothing.

local given, asked_at = ARGV[1], ARGV[2]
local key, project, billing = ARGV[3], ARGV[4], ARGV[5]
local bucket, verb, model = ARGV[6], ARGV[7], ARGV[8]
local kind, used, lease = ARGV[9], tonumber(ARGV[10]), ARGV[11]
local granted, minute, edge = tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14] == '1'
local day_end = tonumber(ARGV[15])
local revived, held = tonumber(ARGV[16]), ARGV[17] == '1'
local requests, tokens = tonumber(ARGV[18]), tonumber(ARGV[19])
local verdict = ARGV[20] ~= '' and cjson.decode(ARGV[20]) or nil

-- Read all there is to read ----------------------------------------------------------------------

-- Without a verdict times only say how long records are kept: then that of the grant will do.
local now = verdict and clock(given) or granted
local STORED, LAST = 21, #ARGV - 5
local names = { unpack(ARGV, LAST + 1) }
local quota_name, health_name = names[4], names[5]
local texts = redis.call('MGET', unpack(names))
local cool, h, touched = { rests(texts[1]), rests(texts[2]), rests(texts[3]) }, health(texts[5]), {}
local q -- read where it is needed
local function known()
  q = q or quota(texts[4])
  return q
end
local scoped = (texts[1] or texts[2] or texts[3]) and scopes(bucket, verb) or {}
local told_bucket = verdict and verdict.bucket ~= '' and verdict.bucket or bucket

-- What was booked ---------------------------------------------------------------------------------

-- Add to the windows of the booking, as far as they still count; never below nothing, which is
-- what is left of a booking after this server lost its memory.
local function correct(more_requests, more_tokens)
  known()
  local function add(place, more)
    q[place] = math.max(q[place] + more, 0)
  end
  if minute == q[MINUTE] then
    add(REQUESTS, more_requests)
    add(TOKENS, more_tokens)
    if edge then
      add(REQUESTS_NEXT, more_requests)
      add(TOKENS_NEXT, more_tokens)
    end
  elseif edge and minute + 1 == q[MINUTE] then
    add(REQUESTS, more_requests)
    add(TOKENS, more_tokens)
  end
  if day_end == q[DAY_END] then
    add(DAY_REQUESTS, more_requests)
  end
end

local function give_back()
  if texts[4] and kind == 'unsent' then
    correct(-requests, -tokens)
    keep_quota(quota_name, q, now)
  elseif texts[4] and used and used ~= tokens then
    correct(0, used - tokens)
    keep_quota(quota_name, q, now)
  end
  if held then
    redis.call('ZREM', at('l:' .. key), lease)
  end
  for _, scope in ipairs(scoped) do
    local rest = cool[scope[1]][scope[2]]
    if rest and rest.probe == lease then
      rest.probe, rest.probe_until, touched[scope[1]] = '', '0', true
    end
  end
end

-- Cooldowns --------------------------------------------------------------------------------------

-- A success ends the exponential cooldown, unless it began before that was over.
local function forgive()
  for _, scope in ipairs(scoped) do
    local rest = cool[scope[1]][scope[2]]
    if rest and seconds(rest['until']) <= granted then
      cool[scope[1]][scope[2]], touched[scope[1]] = nil, true
    end
  end
end

local function learn()
  if verdict.rpm < 0 and verdict.tpm < 0 and verdict.rpd < 0 then
    return
  end
  local told_name, told = quota_name, nil
  if told_bucket == bucket then
    told = known()
  else
    told_name = quota_at(project, told_bucket)
    told = quota(redis.call('GET', told_name))
  end
  local kept = told[TOLD_UNTIL] and now < told[TOLD_UNTIL]
  local function set(place, value)
    told[place] = value >= 0 and value or kept and told[place] or -1
  end
  set(TOLD_RPM, verdict.rpm)
  set(TOLD_TPM, verdict.tpm)
  set(TOLD_RPD, verdict.rpd)
  told[TOLD_UNTIL] = now + DAY_S
  keep_quota(told_name, told, now)
  list_bucket(told_bucket, now)
end

-- How far this clock is ahead of the asking host's; none within the guard, where both are right.
local function ahead()
  local skew = asked_at ~= '' and now - tonumber(asked_at) or 0
  return math.abs(skew) > GUARD_S and skew or 0
end

-- What a scope is about: whose record (billing, project, key), and the place in it.
local function place_of(scope)
  return ({
    billing = { 1, 'billing' }, project = { 2, 'project' }, key = { 3, 'key' },
    project_model = { 2, 'project_model:' .. told_bucket },
    key_model = { 3, 'key_model:' .. told_bucket },
    key_verb = { 3, 'key_verb:' .. verb }, project_cache = { 2, 'project_cache' },
  })[scope]
end

local function strike(place)
  local record, name = cool[place[1]], place[2]
  local rest = record[name] or { ['until'] = '0', strikes = 0 }
  local ends
  if verdict['until'] ~= '' then
    ends = seconds(verdict['until']) + ahead()
  else
    -- Requests that were under way together and fail together are one step of the ladder.
    if granted >= seconds(rest['until']) or rest.strikes == 0 then
      rest.strikes = rest.strikes + 1
    end
    ends = now + math.min(verdict.base_s * 2 ^ math.min(rest.strikes - 1, 60), verdict.max_s)
  end
  if ends >= seconds(rest['until']) then -- a cooldown that runs never ends sooner
    rest['until'], rest.failure, rest.waitable = exact(ends), verdict.failure, verdict.waitable
  end
  rest.probe, rest.probe_until, record[name], touched[place[1]] = '', '0', rest, true
  return exact(seconds(rest['until']) - ahead())
end

-- Is the failure about a value that the key has no longer?
local function replaced(place)
  local owner = ({ billing, project, key })[place[1]]
  local own = owner == key or owner == 'key:' .. key or owner == 'project:key:' .. key
  return verdict['until'] == 'inf' and own and lease ~= '' and revived ~= h[REVIVED]
end

local function punish()
  if told_bucket ~= bucket and bucket ~= '' then
    keep(at('b:' .. model), told_bucket, FOR_EVER_S)
  end
  learn()
  local place = place_of(verdict.scope)
  if place and not replaced(place) then
    return strike(place)
  end
end

-- Write ------------------------------------------------------------------------------------------

if lease ~= '' then
  give_back()
end
for place = STORED, LAST, 2 do
  keep(at('o:' .. ARGV[place]), cjson.encode({ key, project }), tonumber(ARGV[place + 1]))
end
if kind == 'success' then
  h[SUCCESSES] = h[SUCCESSES] + 1
  forgive()
end
local until_s
if verdict then
  h[ERRORS], h[LAST_ERROR] = h[ERRORS] + 1, verdict.failure
  until_s = punish()
end
if kind == 'success' or verdict then
  keep_health(health_name, h)
end
for whose in pairs(touched) do
  keep_rests(names[whose], cool[whose], now)
end
return until_s
