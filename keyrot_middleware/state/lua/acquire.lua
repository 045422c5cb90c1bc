-- Select a key that has capacity in every window and no active cooldown, and reserve its capacity.
--
-- With an empty lease id this is a dry run: each candidate is checked separately and nothing is
-- written; the reply is that of a refusal, with the reason '' for available candidates.
--
-- KEYS: the pool, the replies with that of this lease, the model's bucket, the epoch, and per
--       candidate the cooldowns of its account, of its project and its own, its quota for the
--       caller's bucket, its health.
-- ARGV: clock ('' except in tests), next Pacific midnights (JSON, ascending), model, verb,
--       requests, tokens, spread (1 or 0), lease id, lease seconds, the model's bucket as the caller
--       knows it, number of candidates, cost of the input, cost with the longest answer, what keeps
--       the costs of its service tier apart; the epoch that the caller knows, '' if none, its
--       changes, earlier epochs;
--       per candidate, in order: its group, and a JSON array [weight, rpm, tpm, rpd,
--       max_concurrency, record of the key], '' for the defaults; -1: no limit; with a budget also
--       the budget and the project.
-- Returns {dropped, 1, epoch, its changes, position, bucket, now, probe, minute, near boundary, end of day,
--          counted, refusals}
--      or {dropped, 0, epoch, its changes, now, refusals}, each refusal {position, reason, until, waitable}
--      or {dropped, -1, epoch, its changes, epoch and changes of the data that was kept} if the epoch is not
--          the one that the caller knows.
-- Only a granted lease and a new epoch are written.

local test_clock, midnights, model, verb = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local requests, tokens, spread = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local lease, lease_s, bucket, count = ARGV[8], tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
local input_cost, longest_cost, price_suffix = tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14]
local known_epoch, seen, earlier_epochs = ARGV[15], ARGV[16], ARGV[17]
local dry = lease == ''
local FIXED, EPOCH, EACH = 17, 2, 5
local WEIGHT, RPM, TPM, RPD, CONCURRENCY, KEY, BUDGET, PROJECT = 1, 2, 3, 4, 5, 6, 7, 8
local DEFAULTS = { 1, -1, -1, -1, -1 }

local now, now_text = clock(test_clock)
local active_scopes -- the scopes of this call, if any candidate has a cooldown record

-- Return the limit in force: of the configured and the learned one the smaller; nil if unknown.
local function limit(q, learned, configured)
  local value = q[LEARNED_UNTIL] and q[learned] or -1
  if value < 0 or (configured >= 0 and configured < value) then
    value = configured
  end
  return value >= 0 and value or nil
end

local function cooldown_block(records)
  for _, scope in ipairs(active_scopes) do
    local cooldown = records[scope[1]][scope[2]]
    if cooldown and now < parse_seconds(cooldown['until']) and not is_in_future(cooldown, now) then
      return cooldown.failure, parse_seconds(cooldown['until']), cooldown.waitable
    elseif cooldown and cooldown.probe ~= '' then
      local ends = tonumber(cooldown.probe_until)
      if now < ends and ends <= now + PROBE_S then -- a clock that was set back does not extend it
        return 'probe', math.min(now + POLL_S, ends), true
      end
    end
  end
end

local function limit_block(key, q, near_boundary, rpm, tpm, rpd)
  if key[CONCURRENCY] >= 0 then
    local busy = call('ZCOUNT', full_name('lease:' .. key[KEY]), '(' .. now_text, '+inf')
    if busy >= key[CONCURRENCY] then
      return 'concurrency', now + POLL_S, true
    end
  end
  if rpd and exceeds(q[DAY_REQUESTS], requests, rpd) then
    return 'rpd', q[DAY_END], false
  end
  local next_edge, after_next = (q[MINUTE] + 1) * 60 + GUARD_S, (q[MINUTE] + 2) * 60 + GUARD_S
  if rpm and near_boundary and exceeds(q[REQUESTS_NEXT], requests, rpm) then
    return 'rpm', after_next, true
  elseif rpm and exceeds(q[REQUESTS], requests, rpm) then
    return 'rpm', next_edge, true
  elseif tpm and near_boundary and exceeds(q[TOKENS_NEXT], tokens, tpm) then
    return 'tpm', after_next, true
  elseif tpm and exceeds(q[TOKENS], tokens, tpm) then
    return 'tpm', next_edge, true
  end
end

-- Return the used fraction of the scarcest limit; requests per weight without limits.
local function utilization(q, weight, rpm, tpm, rpd)
  local highest = -1
  if rpm and rpm > 0 then
    highest = q[REQUESTS] / rpm
  end
  if tpm and tpm > 0 then
    highest = math.max(highest, q[TOKENS] / tpm)
  end
  if rpd and rpd > 0 then
    highest = math.max(highest, q[DAY_REQUESTS] / rpd)
  end
  return highest >= 0 and highest or q[REQUESTS] / weight
end

-- Read all records, check the candidates in order ----------------------------------------------

local names = { unpack(KEYS, 3) }
local texts = redis.call('MGET', unpack(names))
local epoch = { '', 0 }
if not dry then
  local earlier = call('HGET', KEYS[2], lease)
  if earlier then -- the caller did not receive the reply
    return is_settled(earlier) and redis.error_reply('ERR the lease was given back')
      or { dropped, unpack(cjson.decode(earlier)) }
  end
  epoch = current_epoch(names[EPOCH], texts[EPOCH], known_epoch, seen, earlier_epochs, lease)
  if known_epoch ~= '' and epoch[ID] ~= known_epoch then
    return { dropped, -1, unpack(epoch) }
  end
end
local assumed_bucket = bucket
bucket = texts[1] or model
if bucket ~= assumed_bucket then -- the bucket of the model has changed
  for position = 1, count do
    local quota_index = EPOCH + (position - 1) * EACH + 4
    names[quota_index] = string.sub(names[quota_index], 1, -#assumed_bucket - 1) .. bucket
  end
  texts = redis.call('MGET', unpack(names))
end

-- Return the cooldowns of the candidate whose names start after an index; nil if there are none.
local function read_candidate_cooldowns(first)
  local billing, project, key = texts[first + 1], texts[first + 2], texts[first + 3]
  if billing or project or key then
    active_scopes = active_scopes or scopes(bucket, verb)
    return {
      read_cooldowns(names[first + 1], billing), read_cooldowns(names[first + 2], project),
      read_cooldowns(names[first + 3], key),
    }
  end
end

local best, refusals = nil, {}
for position = 1, count do
  local group, spec = ARGV[FIXED + 2 * position - 1], ARGV[FIXED + 2 * position]
  if best and not dry and (group ~= best.group or not spread) then
    break
  end
  local key = spec ~= '' and cjson.decode(spec) or DEFAULTS
  local first = EPOCH + (position - 1) * EACH
  local q = read_quota(names[first + 4], texts[first + 4])
  local cooldowns = read_candidate_cooldowns(first)
  local day_end = q[DAY_END]
  local near_boundary = advance(q, now, midnights)
  local rpm, tpm = limit(q, LEARNED_RPM, key[RPM]), limit(q, LEARNED_TPM, key[TPM])
  local rpd = limit(q, LEARNED_RPD, key[RPD])
  local reason, until_s, waitable
  if cooldowns then
    reason, until_s, waitable = cooldown_block(cooldowns)
  end
  if not reason then
    reason, until_s, waitable = limit_block(key, q, near_boundary, rpm, tpm, rpd)
  end
  local spending, expected
  if not reason and key[BUDGET] and requests > 0 then
    spending = read_spending(key[PROJECT], now, midnights)
    expected = expected_cost(spending, bucket .. price_suffix, input_cost, longest_cost)
    reason, until_s, waitable = budget_block(spending, key[BUDGET], expected, now)
  end
  if reason or dry then
    refusals[#refusals + 1] = {
      position, reason or '', format_exact(until_s or 0), waitable and 1 or 0,
    }
  else
    local used = spread and utilization(q, key[WEIGHT], rpm, tpm, rpd) or 0
    if not best or used < best.used then
      best = {
        position = position, group = group, key = key, used = used, cooldowns = cooldowns,
        q = q, near_boundary = near_boundary, new_day = q[DAY_END] ~= day_end, spending = spending,
        expected = expected,
      }
    end
  end
end
if dry or not best then
  return { dropped, 0, epoch[ID], epoch[CHANGES], now_text, refusals }
end

-- Reserve the best -----------------------------------------------------------------------------

local key, q, first = best.key, best.q, EPOCH + (best.position - 1) * EACH
local health = read_health(names[first + 5], texts[first + 5])

add(q, best.near_boundary, requests, tokens)
q[DAY_REQUESTS] = q[DAY_REQUESTS] + requests
save_quota(names[first + 4], q, now)
if best.new_day then
  record_bucket(bucket, now)
end
epoch[CHANGES] = epoch[CHANGES] + 1
save_epoch(names[EPOCH], epoch)

local probing, changed = 0, {}
-- All cooldowns of the key have ended: this lease is their probe.
for _, scope in ipairs(best.cooldowns and active_scopes or {}) do
  local cooldown = best.cooldowns[scope[1]][scope[2]]
  if cooldown then
    cooldown.probe, cooldown.probe_until = lease, format_exact(now + PROBE_S)
    probing, changed[scope[1]] = 1, true
  end
end
for owner in pairs(changed) do
  save_cooldowns(names[first + owner], best.cooldowns[owner], now)
end

if best.spending then
  best.spending[RESERVED][lease] = { best.expected, key[KEY] }
  save_spending(key[PROJECT], best.spending, now)
end

local counted = (key[CONCURRENCY] >= 0 or best.spending) and 1 or 0
if counted == 1 then
  local leases = full_name('lease:' .. key[KEY])
  call('ZREMRANGEBYSCORE', leases, '-inf', now_text)
  redis.call('ZADD', leases, format_exact(now + lease_s), lease)
  redis.call('PEXPIRE', leases, math.ceil(lease_s * 1000))
end

save_health(names[first + 5], health, now_text, names[first + 3])
local reply = {
  1, epoch[ID], epoch[CHANGES], best.position, bucket, now_text, probing,
  q[MINUTE], best.near_boundary and 1 or 0, q[DAY_END], counted, refusals,
}
save_reply(KEYS[2], lease, cjson.encode(reply))
return { dropped, unpack(reply) }
