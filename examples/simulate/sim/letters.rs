//! The dead letter topic: produced, acknowledged, or not.

use hapax::engine::{Event, Ticket};

use super::history::What;
use super::plan::{MS, SECOND};
use super::world::{Happening, Sent, World};

/// Dead letters on their way.
#[derive(Clone, Debug)]
pub struct Letters {
    pub tickets: Vec<(Ticket, u32)>,
}

impl World {
    pub fn send_letters(&mut self, process: usize, tickets: impl Iterator<Item = Ticket>) {
        let mut letters = Vec::new();
        for ticket in tickets {
            let held = self.processes[process].get(ticket);
            held.calls += 1;
            letters.push((ticket, held.message));
        }
        let down = self.now < self.broker_down_until || self.random.chance(self.weather.letter_fails);
        let lost = self.random.chance(self.weather.letter_reply_lost);
        let there = self.random.between(100, 8 * MS);
        self.letters.push(Letters { tickets: letters });
        let index = self.letters.len() as u32 - 1;
        if down {
            self.at(self.now + there * 4, Sent::To(process as u32), Happening::Lettered { index, acknowledged: false });
            return;
        }
        self.at(self.now + there, Sent::World(process as u32), Happening::LettersArrive(index));
        let back = if lost { self.random.between(100 * MS, SECOND) } else { there * 2 };
        self.at(self.now + back, Sent::To(process as u32), Happening::Lettered { index, acknowledged: !lost });
    }

    pub fn letters_arrive(&mut self, process: usize, index: u32) {
        let letters = self.letters[index as usize].tickets.clone();
        letters.iter().for_each(|(_, message)| self.log(process, What::Lettered { message: *message }));
    }

    pub fn lettered(&mut self, process: usize, index: u32, acknowledged: bool) {
        let tickets: Vec<Ticket> = self.letters[index as usize].tickets.iter().map(|(ticket, _)| *ticket).collect();
        for ticket in &tickets {
            self.processes[process].get(*ticket).calls -= 1;
        }
        if self.crash_at_step(process) {
            return;
        }
        if acknowledged {
            self.feed(process, Event::DeadLettered(tickets));
        } else {
            let random = self.random.next();
            self.feed(process, Event::DeadLetterFailed { tickets, random });
        }
    }
}
