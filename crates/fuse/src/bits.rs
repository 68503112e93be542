//! Sets of named flags, as the protocol has several: one type each, so that they cannot be mixed.

/// Declares a set of flags with the usual set operations and a `Debug` that prints names.
macro_rules! flag_set {
    ($(#[$doc:meta])* $name:ident($bits:ty) {
        $($(#[$flag_doc:meta])* $flag:ident = $value:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name($bits);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self($value);)*

            /// No flag.
            pub const NONE: Self = Self(0);

            /// The set with these bits, known or not.
            pub const fn from_bits(bits: $bits) -> Self {
                Self(bits)
            }

            /// The bits as the kernel has them.
            pub const fn bits(self) -> $bits {
                self.0
            }

            /// Whether all flags of `other` are in this set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// This set without the flags of `other`.
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The flags of both sets.
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }

        impl std::ops::BitAnd for $name {
            type Output = Self;

            fn bitand(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let known = [$((stringify!($flag), Self::$flag)),*];
                let mut set = f.debug_set();
                let mut rest = *self;
                for (name, flag) in known {
                    if self.contains(flag) {
                        set.entry(&format_args!("{name}"));
                        rest = rest.without(flag);
                    }
                }
                if rest != Self::NONE {
                    set.entry(&format_args!("{:#x}", rest.0));
                }
                set.finish()
            }
        }
    };
}

pub(crate) use flag_set;
