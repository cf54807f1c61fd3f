//! What a handler returned, kept for those who ask again.

use bytes::Bytes;

/// A handler's result that can be kept in the record and given to duplicates.
///
/// Results are kept only where [`keep_results`](crate::OnceBuilder::keep_results) says so. A result that needs no keeping
/// goes into [`Unkept`]; one that serde knows, into `AsJson`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be kept for duplicates",
    note = "return `AsJson(value)` to keep it as JSON, `Unkept(value)` not to keep it, or implement `hapax::Kept` for it"
)]
pub trait Kept: Sized {
    /// The bytes to keep; `None` if it is not to be kept.
    fn to_kept(&self) -> Option<Bytes>;

    /// Reads what [`to_kept`](Self::to_kept) gave; `None` for anything else.
    fn from_kept(bytes: &Bytes) -> Option<Self>;
}

impl Kept for () {
    fn to_kept(&self) -> Option<Bytes> {
        Some(Bytes::new())
    }

    fn from_kept(bytes: &Bytes) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl Kept for Bytes {
    fn to_kept(&self) -> Option<Bytes> {
        Some(self.clone())
    }

    fn from_kept(bytes: &Bytes) -> Option<Self> {
        Some(bytes.clone())
    }
}

impl Kept for Vec<u8> {
    fn to_kept(&self) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(self))
    }

    fn from_kept(bytes: &Bytes) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl Kept for String {
    fn to_kept(&self) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(self.as_bytes()))
    }

    fn from_kept(bytes: &Bytes) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Kept for $type {
            fn to_kept(&self) -> Option<Bytes> {
                Some(Bytes::copy_from_slice(&self.to_be_bytes()))
            }

            fn from_kept(bytes: &Bytes) -> Option<Self> {
                bytes.as_ref().try_into().ok().map(Self::from_be_bytes)
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);

impl Kept for bool {
    fn to_kept(&self) -> Option<Bytes> {
        u8::from(*self).to_kept()
    }

    fn from_kept(bytes: &Bytes) -> Option<Self> {
        match u8::from_kept(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// A result that is never kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unkept<T>(pub T);

impl<T> Kept for Unkept<T> {
    fn to_kept(&self) -> Option<Bytes> {
        None
    }

    fn from_kept(_: &Bytes) -> Option<Self> {
        None
    }
}

/// A result that is kept as JSON.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsJson<T>(pub T);

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Kept for AsJson<T> {
    fn to_kept(&self) -> Option<Bytes> {
        serde_json::to_vec(&self.0).ok().map(Bytes::from)
    }

    fn from_kept(bytes: &Bytes) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<T: Kept + PartialEq + std::fmt::Debug>(value: T) {
        assert_eq!(T::from_kept(&value.to_kept().unwrap()), Some(value));
    }

    #[test]
    fn results_come_back_as_they_were() {
        there_and_back(());
        there_and_back(Bytes::from_static(b"\0\xff"));
        there_and_back(vec![0_u8, 255]);
        there_and_back(String::from("größer"));
        there_and_back(-7_i64);
        there_and_back(u128::MAX);
        there_and_back(true);
        #[cfg(feature = "json")]
        there_and_back(AsJson(vec![Some(1), None]));
    }

    #[test]
    fn what_is_something_else_is_not_read() {
        let bytes = Bytes::from_static(b"\xff\xfe\xfd");
        assert_eq!(<()>::from_kept(&bytes), None);
        assert_eq!(String::from_kept(&bytes), None);
        assert_eq!(u64::from_kept(&bytes), None);
        assert_eq!(bool::from_kept(&Bytes::from_static(&[2])), None);
        #[cfg(feature = "json")]
        assert_eq!(AsJson::<u32>::from_kept(&bytes), None);
        assert_eq!(Unkept(1).to_kept(), None);
    }
}
