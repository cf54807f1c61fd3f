//! What is ordered.

use std::collections::BTreeMap;

use hapax::inbox::Message;

use crate::random::Random;

pub const PARTITIONS: i32 = 8;
/// Orders of one customer are handled one after the other, in the order in which they were given.
pub const CUSTOMERS: i64 = 500;
/// The header with the order's id.
pub const ID: &str = "order-id";
/// Copies for each hundred orders.
const COPIES: u32 = 5;
/// What only a later version of the workers knows to charge.
const NEW_CURRENCY: &str = "XTS";

/// A customer is to be charged so much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub id: String,
    pub customer: i64,
    pub cents: i64,
    pub currency: String,
    /// Attempts that fail before one succeeds: the bank is asked in vain.
    pub stumbles: u32,
}

impl Order {
    pub fn draw(number: u64, failing: u64, random: &mut Random) -> Self {
        let below = |random: &mut Random, bound: i64| i64::try_from(random.below(bound.unsigned_abs())).unwrap_or(0);
        let customer = below(random, CUSTOMERS);
        let cents = 1 + below(random, 5_000);
        let stumbles = if random.below(100) < failing { 1 + u32::from(random.chance(3_000)) } else { 0 };
        Self { id: format!("o{number:07}"), customer, cents, currency: "EUR".into(), stumbles }
    }

    /// In a currency that the workers do not know: as poison is, it fails whenever it is tried.
    pub fn poison(mut self) -> Self {
        self.currency = NEW_CURRENCY.into();
        self.stumbles = 0;
        self
    }

    /// Whether workers of this version can charge it.
    pub fn is_known(&self, fixed: bool) -> bool {
        fixed || self.currency != NEW_CURRENCY
    }

    /// Where all orders of a customer are: a partition keeps their order.
    pub fn partition(&self) -> i32 {
        i32::try_from(self.customer % i64::from(PARTITIONS)).unwrap_or(0)
    }

    pub fn payload(&self) -> String {
        let Self { customer, cents, currency, stumbles, .. } = self;
        format!(r#"{{"customer":{customer},"cents":{cents},"currency":"{currency}","stumbles":{stumbles}}}"#)
    }

    pub fn read(message: &Message) -> Option<Self> {
        let id = std::str::from_utf8(message.header(ID)?).ok()?.to_owned();
        let body: serde_json::Value = serde_json::from_slice(message.payload()?).ok()?;
        let number = |name: &str| body.get(name)?.as_i64();
        Some(Self {
            id,
            customer: number("customer")?,
            cents: number("cents")?,
            currency: body.get("currency")?.as_str()?.to_owned(),
            stumbles: u32::try_from(number("stumbles")?).ok()?,
        })
    }
}

/// What is to have its effect.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    pub orders: BTreeMap<String, Order>,
    /// The id of the one that no worker knows to handle at first.
    pub poison: String,
    pub copies: u64,
}

/// So many orders, and some of them again, as they are to be sent. Of a hundred so many fail at first.
pub fn draw(orders: u64, failing: u64, seed: u64) -> (Produced, Vec<Order>) {
    let mut random = Random::new(seed);
    let (mut produced, mut sent) = (Produced::default(), Vec::<Order>::new());
    let poison = orders / 3;
    for number in 1..=orders {
        let mut order = Order::draw(number, failing, &mut random);
        if number == poison {
            order = order.poison();
            produced.poison.clone_from(&order.id);
        }
        produced.orders.insert(order.id.clone(), order.clone());
        sent.push(order);
        if random.chance(COPIES * 100) {
            // Most producers repeat themselves at once; some replay what is long past.
            let back = if random.chance(7_000) { random.index(20) } else { random.index(sent.len()) };
            sent.push(sent[sent.len() - 1 - back.min(sent.len() - 1)].clone());
            produced.copies += 1;
        }
    }
    (produced, sent)
}
