//! Commands of one batch, and the scripts.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, RedisWrite};

use crate::identity::Key;
use crate::record::Millis;

/// Commands to be sent together, one key each. There is no atomicity across them.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) pipeline: Pipeline,
    /// The full key of each command, one after the other; empty for commands without one.
    names: Vec<u8>,
    prefix_len: usize,
    /// The last time to live, as text: as a rule all commands of a batch have the same.
    ttl: (Millis, String),
}

impl Calls {
    pub(super) fn new(prefix: &str, capacity: usize) -> Self {
        let prefix_len = prefix.len();
        let names = Vec::with_capacity(capacity * (prefix_len + 16));
        Self { pipeline: Pipeline::with_capacity(capacity), names, prefix_len, ttl: (0, "0".to_owned()) }
    }

    /// Commands without a key.
    pub(super) fn of(commands: impl IntoIterator<Item = Cmd>) -> Self {
        let mut calls = Self::new("", 0);
        for command in commands {
            calls.pipeline.add_command(command);
        }
        calls
    }

    pub(super) fn len(&self) -> usize {
        self.pipeline.len()
    }

    /// The key of each command.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.chunks_exact(self.prefix_len + 16)
    }

    fn name(&mut self, prefix: &str, key: Key) -> std::ops::Range<usize> {
        debug_assert_eq!(prefix.len(), self.prefix_len);
        let start = self.names.len();
        self.names.extend_from_slice(prefix.as_bytes());
        self.names.extend_from_slice(key.as_bytes());
        start..self.names.len()
    }

    fn keyed(&mut self, prefix: &str, name: &str, key: Key, arguments: usize, bytes: usize) -> Cmd {
        let range = self.name(prefix, key);
        let mut command = Cmd::with_capacity(2 + arguments, name.len() + range.len() + bytes);
        command.write_arg(name.as_bytes());
        command.write_arg(&self.names[range]);
        command
    }

    /// `SET key value [NX] [GET] PX ttl`.
    pub(super) fn set(&mut self, prefix: &str, key: Key, value: &[u8], flags: &[&str], ttl: Millis) {
        let mut command = self.keyed(prefix, "SET", key, 3 + flags.len(), value.len() + 24);
        command.write_arg(value);
        for flag in flags {
            command.write_arg(flag.as_bytes());
        }
        command.write_arg(b"PX");
        if self.ttl.0 != ttl {
            self.ttl = (ttl, ttl.to_string());
        }
        command.write_arg(self.ttl.1.as_bytes());
        self.pipeline.add_command(command);
    }

    /// `GET key`.
    pub(super) fn get(&mut self, prefix: &str, key: Key) {
        let command = self.keyed(prefix, "GET", key, 0, 0);
        self.pipeline.add_command(command);
    }

    /// A script on one key, by its digest or by its text.
    pub(super) fn script(&mut self, prefix: &str, script: &Script, by_text: bool, run: &Run) {
        let (name, which) = if by_text { ("EVAL", script.text) } else { ("EVALSHA", script.digest.as_str()) };
        let bytes: usize = run.arguments.iter().map(Vec::len).sum();
        let range = self.name(prefix, run.key);
        let mut command = Cmd::with_capacity(4 + run.arguments.len(), 8 + which.len() + range.len() + bytes);
        command.write_arg(name.as_bytes());
        command.write_arg(which.as_bytes());
        command.write_arg(b"1");
        command.write_arg(&self.names[range]);
        for argument in &run.arguments {
            command.write_arg(argument);
        }
        self.pipeline.add_command(command);
    }
}

/// `MGET key…`: one command for all.
pub(super) fn read_all(prefix: &str, keys: &[Key]) -> Cmd {
    let mut command = Cmd::with_capacity(1 + keys.len(), 4 + keys.len() * (prefix.len() + 16));
    let mut name = prefix.as_bytes().to_vec();
    command.write_arg(b"MGET");
    for key in keys {
        name.truncate(prefix.len());
        name.extend_from_slice(key.as_bytes());
        command.write_arg(&name);
    }
    command
}

/// One run of a script.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) key: Key,
    pub(super) arguments: Vec<Vec<u8>>,
}

/// A number as an argument.
pub(super) fn number(number: Millis) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// Lua on one key. Nothing is ever spliced into the text.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }
}

/// A value and what it has left to live, read as one. No arguments.
pub(super) static AGE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"));

// The others answer 1 where they found what they were to find, and 0 otherwise.

/// Puts a value in the place of the one with a stamp. Arguments: the stamp's bytes, the value, its time to live.
pub(super) static SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local v = redis.call('GET', KEYS[1])
if not v or string.sub(v, 1, 26) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1",
    )
});

/// Ends a held claim. Arguments: the hold's bytes, the first bytes to write, the delay from now to the state's time,
/// the time to live, the attempts, the client's guess at the time (for a key that was made to live for ever), the fingerprint.
pub(super) static END: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local v = redis.call('GET', KEYS[1])
if not v or string.sub(v, 1, 18) ~= ARGV[1] or string.sub(v, 47, 62) ~= ARGV[7] then return 0 end
local written, ttl = struct.unpack('>i8i8', v, 27)
local left = redis.call('PTTL', KEYS[1])
local now = tonumber(ARGV[6])
if left >= 0 then now = written + ttl - left end
if now < written then now = written end
local head = ARGV[2] .. struct.pack('>i8i8i8I4', now + tonumber(ARGV[3]), now, tonumber(ARGV[4]), tonumber(ARGV[5]))
redis.call('SET', KEYS[1], head .. string.sub(v, 47), 'PX', ARGV[4])
return 1",
    )
});

/// Prolongs a held claim, and never shortens it. Arguments: the hold's bytes, the lease, the retention after it, the client's guess at the time.
pub(super) static PROLONG: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local v = redis.call('GET', KEYS[1])
if not v or string.sub(v, 1, 18) ~= ARGV[1] then return 0 end
local time, written, ttl = struct.unpack('>i8i8i8', v, 19)
local left = redis.call('PTTL', KEYS[1])
local now = tonumber(ARGV[4])
if left >= 0 then now = written + ttl - left end
if now < written then now = written end
local longer = now + tonumber(ARGV[2])
if longer <= time then return 1 end
local px = tonumber(ARGV[2]) + tonumber(ARGV[3])
redis.call('SET', KEYS[1], ARGV[1] .. struct.pack('>i8i8i8', longer, now, px) .. string.sub(v, 43), 'PX', string.format('%.0f', px))
return 1",
    )
});
