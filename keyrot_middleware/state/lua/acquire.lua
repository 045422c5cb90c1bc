-- Choose a key that has room in every window and is cooling down in no scope, and book it: all or nothing.
--
-- With an empty lease id this is a dry run: each candidate is decided on by itself, and nothing is
-- written; the reply is that of a refusal, with the reason '' for those that would be leased.
--
-- ARGV: clock ('' but in tests), next Pacific midnights (JSON, ascending), model, verb, requests,
--       tokens, spread (1 or 0), lease id, lease seconds, the model's bucket as the asker knows it,
--       how many candidates;
--       of each candidate, in order: its group, and a JSON array of [weight, rpm, tpm, rpd,
--       concurrency, key], '' where there is nothing to say; -1: no limit;
--       names of records: the model's bucket, the epoch, and of each candidate the cooldowns of its
--       account, its project and its own, its quota for the asker's bucket, its health.
-- Gives {1, epoch, place in the list, bucket, now, probe, minute, edge, day's end, mark, held}
--    or {0, epoch, now, reason, until, waitable, reason, until, waitable, …} in the list's order.
-- Nothing is written before the choice is made: who is refused leaves no trace, but that a server
-- that has lost its memory gets a new epoch.

local given, midnights, model, verb = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local requests, tokens, spread = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local lease, lease_s, bucket, count = ARGV[8], tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
local dry = lease == ''
local FIXED, EPOCH, EACH = 11, 2, 5
local WEIGHT, RPM, TPM, RPD, CONCURRENCY, KEY = 1, 2, 3, 4, 5, 6
local PLAIN = { 1, -1, -1, -1, -1 }

local now, now_text = clock(given)
local scoped -- the scopes of this call, once any record of a cooldown is there

-- The limit in force: what Google reported beats what was configured; nil where nobody knows.
local function limit(q, learned, configured)
  local value = q[LEARNED_UNTIL] and q[learned] >= 0 and q[learned] or configured
  return value >= 0 and value or nil
end

local function resting(records)
  for _, scope in ipairs(scoped) do
    local rest = records[scope[1]][scope[2]]
    if rest and now < seconds(rest['until']) and not is_ahead(rest, now) then
      return rest.failure, seconds(rest['until']), rest.waitable
    elseif rest and rest.probe ~= '' then
      local ends = tonumber(rest.probe_until)
      if now < ends and ends <= now + PROBE_S then -- a clock that was set back makes it no longer
        return 'probe', math.min(now + POLL_S, ends), true
      end
    end
  end
end

local function no_room(key, q, edge, rpm, tpm, rpd)
  if key[CONCURRENCY] >= 0 then
    local busy = redis.call('ZCOUNT', at('lease:' .. key[KEY]), '(' .. now_text, '+inf')
    if busy >= key[CONCURRENCY] then
      return 'concurrency', now + POLL_S, true
    end
  end
  if rpd and full(q[DAY_REQUESTS], requests, rpd) then
    return 'rpd', q[DAY_END], false
  end
  if q[KIND] then
    local ends = rpm and pace_full(q, now, 1, requests, rpm)
    if ends then
      return 'rpm', ends, true
    end
    ends = tpm and pace_full(q, now, 2, tokens, tpm)
    if ends then
      return 'tpm', ends, true
    end
    return nil
  end
  local next_edge, after_next = (q[MINUTE] + 1) * 60 + GUARD_S, (q[MINUTE] + 2) * 60 + GUARD_S
  if rpm and edge and full(q[REQUESTS_NEXT], requests, rpm) then
    return 'rpm', after_next, true
  elseif rpm and full(q[REQUESTS], requests, rpm) then
    return 'rpm', next_edge, true
  elseif tpm and edge and full(q[TOKENS_NEXT], tokens, tpm) then
    return 'tpm', after_next, true
  elseif tpm and full(q[TOKENS], tokens, tpm) then
    return 'tpm', next_edge, true
  end
end

-- How much of the scarcest limit is used; of the weight where no limit is known.
local function share(q, weight, rpm, tpm, rpd)
  local most, used_requests, used_tokens = -1, in_use(q, now)
  if rpm and rpm > 0 then
    most = used_requests / rpm
  end
  if tpm and tpm > 0 then
    most = math.max(most, used_tokens / tpm)
  end
  if rpd and rpd > 0 then
    most = math.max(most, q[DAY_REQUESTS] / rpd)
  end
  return most >= 0 and most or q[REQUESTS] / weight
end

-- Look at all, in order ------------------------------------------------------------------------

local names = { unpack(ARGV, FIXED + 2 * count + 1) }
local texts = redis.call('MGET', unpack(names))
local guessed = bucket
bucket = texts[1] or model
if bucket ~= guessed then -- the asker's knowledge is old
  for place = 1, count do
    local quota_place = EPOCH + (place - 1) * EACH + 4
    names[quota_place] = string.sub(names[quota_place], 1, -#guessed - 1) .. bucket
  end
  texts = redis.call('MGET', unpack(names))
end

local function cooldowns(first) -- of the candidate whose names begin after this place
  local billing, project, key = texts[first + 1], texts[first + 2], texts[first + 3]
  if billing or project or key then
    scoped = scoped or scopes(bucket, verb)
    return { read_cooldowns(billing), read_cooldowns(project), read_cooldowns(key) }
  end
end

local best, refusals = nil, {}
for place = 1, count do
  local group, spec = ARGV[FIXED + 2 * place - 1], ARGV[FIXED + 2 * place]
  if best and not dry and (group ~= best.group or not spread) then
    break
  end
  local key = spec ~= '' and cjson.decode(spec) or PLAIN
  local first = EPOCH + (place - 1) * EACH
  local q, cool = quota(texts[first + 4]), cooldowns(first)
  local day_end = q[DAY_END]
  local edge = roll(q, now, midnights)
  local rpm, tpm = limit(q, LEARNED_RPM, key[RPM]), limit(q, LEARNED_TPM, key[TPM])
  local rpd = limit(q, LEARNED_RPD, key[RPD])
  local reason, until_s, waitable
  if cool then
    reason, until_s, waitable = resting(cool)
  end
  if not reason then
    reason, until_s, waitable = no_room(key, q, edge, rpm, tpm, rpd)
  end
  if reason or dry then
    local last = #refusals
    refusals[last + 1], refusals[last + 2] = reason or '', exact(until_s or 0)
    refusals[last + 3] = waitable and 1 or 0
  else
    local used = spread and share(q, key[WEIGHT], rpm, tpm, rpd) or 0
    if not best or used < best.used then
      best = { place = place, group = group, key = key, q = q, edge = edge, used = used, cool = cool }
      best.rpm, best.tpm = rpm, tpm
      best.new_day = q[DAY_END] ~= day_end
    end
  end
end
local epoch = texts[EPOCH]
if dry then
  return { 0, epoch or '', now_text, unpack(refusals) }
end
if not epoch then
  epoch = lease
  keep(names[EPOCH], epoch, FOR_EVER_S)
end
if not best then
  return { 0, epoch, now_text, unpack(refusals) }
end

-- Book the best --------------------------------------------------------------------------------

local key, q, first = best.key, best.q, EPOCH + (best.place - 1) * EACH
local h = health(texts[first + 5])

local mark = book(q, now, best.edge, requests, tokens, best.rpm, best.tpm)
q[DAY_REQUESTS] = q[DAY_REQUESTS] + requests
keep_quota(names[first + 4], q, now)
if best.new_day then
  list_bucket(bucket, now)
  redis.call('PEXPIRE', names[EPOCH], FOR_EVER_S * 1000)
end

local probing, touched = 0, {}
for _, scope in ipairs(best.cool and scoped or {}) do -- all of them are over: this is the probe
  local rest = best.cool[scope[1]][scope[2]]
  if rest then
    rest.probe, rest.probe_until = lease, exact(now + PROBE_S)
    probing, touched[scope[1]] = 1, true
  end
end
for whose in pairs(touched) do
  keep_rests(names[first + whose], best.cool[whose], now)
end

local held = key[CONCURRENCY] >= 0 and 1 or 0
if held == 1 then
  local leases = at('lease:' .. key[KEY])
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now_text)
  redis.call('ZADD', leases, exact(now + lease_s), lease)
  redis.call('PEXPIRE', leases, math.ceil(lease_s * 1000))
end

keep_health(names[first + 5], h, now_text, names[first + 3])
return {
  1, epoch, best.place, bucket, now_text, probing,
  q[MINUTE], best.edge and 1 or 0, q[DAY_END], mark, held,
}
