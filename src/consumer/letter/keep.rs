//! What the pump hands over, sent.

use super::format::GivenUp;
use super::sender::{LetterError, LetterSender};
use crate::consumer::pump::{Letter, Letters, Sending, Undelivered};
use crate::message::MessageView;

impl Letters for LetterSender {
    fn send(&self, letters: Vec<Letter>) -> Sending {
        // Written at once: the messages, and the buffers they stand in, are not kept while the broker is waited for.
        let written =
            letters.iter().map(|letter| self.write(&letter.message as &dyn MessageView, &given_up(letter))).collect();
        let sender = self.clone();
        Box::pin(async move {
            let results = sender.produce(written).await;
            results.into_iter().map(|result| result.map_err(undelivered)).collect()
        })
    }
}

fn given_up(letter: &Letter) -> GivenUp {
    GivenUp {
        cause: letter.cause,
        class: letter.fault.as_ref().map(|fault| fault.class),
        error: letter.fault.as_ref().map(|fault| fault.text.clone()),
        attempts: letter.attempts,
        first_at: letter.first_at,
        last_at: letter.last_at,
        key: letter.key,
    }
}

fn undelivered(error: LetterError) -> Undelivered {
    if error.is_retryable() { Undelivered::Later(error.into()) } else { Undelivered::Never(error.into()) }
}
