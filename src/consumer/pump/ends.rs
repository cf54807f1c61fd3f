//! Messages that finish or are dropped, assignments that go, and the end.

use super::*;

impl<H: Drive> Pump<H> {
    pub(super) fn finished(&mut self, finished: &[(Ticket, Ending)]) {
        let mut counts = [0_u64; 5];
        // Here, since what is put down may hold a lock: nobody waits for the log under it.
        for (ticket, _) in finished.iter().filter(|(_, ending)| *ending == Ending::Dead) {
            if let Some(entry) = self.slab.get(*ticket) {
                self.said.given_up(entry);
            }
        }
        let (slab, periods, watch, tally) = (&mut self.slab, &mut self.periods, &mut self.watch, &mut self.tally);
        let states = finished.iter().filter_map(|(ticket, ending)| {
            let entry = slab.remove(*ticket)?;
            let count = match ending {
                Ending::Handled => 0,
                Ending::Redelivered => 1,
                Ending::SameId => 2,
                Ending::Conflict => 3,
                Ending::Dead => 4,
            };
            counts[count] += 1;
            let late = u64::from(periods.leave(entry.period));
            tally.late += late;
            if watch.is_on() {
                watch.finished(&entry.message, *ending);
                watch.late(late);
            }
            Some(entry.state)
        });
        self.handling.records().put_down_all(states);
        let [handled, redelivered, same_id, conflicts, dead] = counts;
        let tally = &mut self.tally;
        tally.handled += handled;
        tally.redelivered += redelivered;
        tally.same_id += same_id;
        tally.conflicts += conflicts;
        tally.dead += dead;
        let records = self.handling.records();
        let endings = [Ending::Handled, Ending::Redelivered, Ending::SameId, Ending::Conflict, Ending::Dead];
        for (ending, count) in endings.into_iter().zip(counts) {
            records.finished(ending, count);
        }
        self.line.give_back(finished.len() as u64);
    }

    pub(super) fn dropped(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let Some(entry) = self.slab.remove(*ticket) else { continue };
            self.periods.leave(entry.period);
            self.handling.records().put_down(entry.state);
        }
        self.watch.dropped(tickets.len() as u64);
        self.line.give_back(tickets.len() as u64);
    }

    pub(super) fn revoked(&mut self, epochs: &[Epoch], drained: Drained) {
        self.periods.end(epochs);
        let is_it = |(asked, _): &(Vec<Epoch>, _)| asked.iter().any(|epoch| epochs.contains(epoch)) || asked.is_empty();
        if let Some(at) = self.revokes.iter().position(is_it) {
            let (_, answer) = self.revokes.remove(at);
            // Nobody waits where partitions were lost.
            let _ = answer.send(drained);
        }
    }

    /// Asks for the end of the consumer, since a message may not be passed.
    pub(super) fn stop_at(&mut self, ticket: Ticket, cause: Cause) {
        let Some(entry) = self.slab.get(ticket) else { return };
        let last = entry.trouble.as_deref().map(|trouble| &trouble.last);
        let failure = self.handling.records().explain(&entry.message, &entry.state, cause, last);
        self.stop(Some(ticket), failure);
    }

    pub(super) fn stop(&mut self, ticket: Option<Ticket>, failure: Failure) {
        let Some(entry) = ticket.and_then(|ticket| self.slab.get(ticket)) else { return };
        if !std::mem::replace(&mut self.stopped, true) {
            let (partition, offset) = (entry.message.partition(), entry.message.offset());
            self.line.ask(Request::Stop { topic: entry.message.topic().to_owned(), partition, offset, failure });
        }
    }

    pub(super) fn close(&mut self, drained: Drained) {
        self.put_all_down();
        self.closed = true;
        if let Some(answer) = self.close.take() {
            let _ = answer.send(drained);
        }
    }

    /// Drops what runs, and leaves to the registry what the store has not heard.
    fn put_all_down(&mut self) {
        let calls = self.claiming.take().into_iter().chain(self.settling.take());
        calls.filter_map(|out| out.task).for_each(|task| task.abort());
        // What ended a moment ago has ended so.
        let mut ran = Vec::new();
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Ran(outcomes) => self.ran(outcomes, &mut ran),
                Report::Claimed(_) | Report::Settled(_) | Report::Lettered(_) => {}
            }
        }
        let records = self.handling.records();
        for entry in self.slab.drain() {
            if let Some(task) = entry.task {
                task.abort();
            }
            records.put_down(entry.state);
        }
    }
}

impl<H: Drive> Drop for Pump<H> {
    fn drop(&mut self) {
        self.put_all_down();
    }
}
