// Whether a request for memory may sleep, and how long.

/// Whether a request may sleep until there is memory, and until when.
@frozen public struct WaitPolicy: Equatable, Sendable {
  /// The tick at which the request is refused; 0 for one that does not sleep.
  @usableFromInline package let deadline: Tick

  @inlinable init(deadline: Tick) { self.deadline = deadline }

  /// It does not sleep.
  @inlinable public static var forbidden: Self { Self(deadline: Tick(0)) }
  /// It sleeps as long as some other thread may free memory.
  @inlinable public static var allowed: Self { Self(deadline: .never) }
  /// It sleeps until `deadline` at most. A deadline of 0 forbids sleeping.
  @inlinable public static func until(_ deadline: Tick) -> Self { Self(deadline: deadline) }

  /// Whether the request may sleep at all.
  @inlinable public var mayWait: Bool { deadline.rawValue != 0 }
}
