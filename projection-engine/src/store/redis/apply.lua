-- Applies a batch to one shard: writes its records and the shard's position atomically.
--
-- KEYS[1]  the shard's checkpoint of the projection; then the keys of the writes.
-- ARGV[1]  the field in the checkpoint: the partition's, or a parked key's
-- ARGV[2]  the shard's position that the caller expects; the shard may be further
-- ARGV[3]  the position after the batch
-- ARGV[4]  the number of changes of parked keys; KEYS[2] is the hash of these if there are any
-- then for each change: `park`, field, value; or `extend`, field, last offset, number of added records
-- then for each write: action, offset of its record, index of its key, number of arguments, the arguments.
--
-- Returns {1, stored, counts…}. Returns without a change: {0, stored} if the shard is before the expected position,
-- {2, stored} if it is after it and the batch changes parked keys, {3, stored} if the parked keys are not as the caller
-- expects. Skips writes of records that the shard has already; always executes `count`.
--
-- Ids stay strings throughout: Lua prints a number above 10^14 with an exponent.

local actions = {}

function actions.create_hash(key, arguments)
    if redis.call('EXISTS', key) == 0 then
        redis.call('HSET', key, unpack(arguments))
    end
end

-- arguments: field, its required value, then fields and values to set
function actions.update_hash_while(key, arguments)
    if redis.call('HGET', key, arguments[1]) == arguments[2] then
        redis.call('HSET', key, unpack(arguments, 3))
    end
end

function actions.add_scored(key, arguments)
    redis.call('ZADD', key, 'NX', arguments[1], arguments[2])
end

function actions.remove_scored(key, arguments)
    redis.call('ZREM', key, arguments[1])
end

function actions.add_member(key, arguments)
    redis.call('SADD', key, arguments[1])
end

function actions.remove_member(key, arguments)
    redis.call('SREM', key, arguments[1])
end

-- arguments: member, index of the other set's key
function actions.add_member_unless_in(key, arguments)
    if redis.call('SISMEMBER', KEYS[tonumber(arguments[2])], arguments[1]) == 0 then
        redis.call('SADD', key, arguments[1])
    end
end

-- arguments: base of the score, member, index of the key of the set whose size is added
function actions.rank(key, arguments)
    if not redis.call('ZSCORE', key, arguments[2]) then
        local size = redis.call('SCARD', KEYS[tonumber(arguments[3])])
        redis.call('ZADD', key, string.format('%.0f', tonumber(arguments[1]) + size), arguments[2])
    end
end

-- arguments: the step between bases, member, index of the key of the set whose size is added
function actions.update_rank(key, arguments)
    local score = redis.call('ZSCORE', key, arguments[2])
    if score then
        local base = tonumber(score) - tonumber(score) % tonumber(arguments[1])
        local size = redis.call('SCARD', KEYS[tonumber(arguments[3])])
        redis.call('ZADD', key, string.format('%.0f', base + size), arguments[2])
    end
end

-- arguments: field of the part, its count; maintains the field `total` as the sum of the parts
function actions.set_part(key, arguments)
    local before = redis.call('HGET', key, arguments[1]) or '0'
    if arguments[2] == '0' then
        redis.call('HDEL', key, arguments[1])
    else
        redis.call('HSET', key, arguments[1], arguments[2])
    end
    redis.call('HINCRBY', key, 'total', tonumber(arguments[2]) - tonumber(before))
end

local stored = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if stored < tonumber(ARGV[2]) then
    return {0, stored}
end

-- Checks all changes of parked keys before the first write.
local at, changes = 5, {}
for _ = 1, tonumber(ARGV[4]) do
    if stored > tonumber(ARGV[2]) then
        return {2, stored}
    end
    local kind, field = ARGV[at], ARGV[at + 1]
    local parked = redis.call('HGET', KEYS[2], field)
    if (kind == 'park') == (parked ~= false) then
        return {3, stored}
    end
    if kind == 'park' then
        changes[#changes + 1] = {field, ARGV[at + 2]}
        at = at + 3
    else
        local first, waiting, rest = string.match(parked, '^(%d+):%d+:(%d+):(.*)$')
        local more = string.format('%d', tonumber(waiting) + tonumber(ARGV[at + 3]))
        changes[#changes + 1] = {field, first .. ':' .. ARGV[at + 2] .. ':' .. more .. ':' .. rest}
        at = at + 4
    end
end
for _, change in ipairs(changes) do
    redis.call('HSET', KEYS[2], change[1], change[2])
end

local result = {1, stored}
while at <= #ARGV do
    local action, offset, key, length = ARGV[at], tonumber(ARGV[at + 1]), KEYS[tonumber(ARGV[at + 2])], tonumber(ARGV[at + 3])
    if action == 'count' then
        result[#result + 1] = redis.call('SCARD', key)
    elseif offset >= stored then
        local arguments = {}
        for i = 1, length do
            arguments[i] = ARGV[at + 3 + i]
        end
        actions[action](key, arguments)
    end
    at = at + 4 + length
end

if stored < tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    result[2] = tonumber(ARGV[3])
end
return result
