// The purposes of ranges, and the arenas that wired memory gets its addresses from.

import MemoryPrimitives
import PageTables

/// The arena that wired memory gets its addresses from.
@frozen public enum WiredArena: UInt8, Sendable {
  /// kmem.
  case heap
  /// Metadata of the memory system.
  case metadata
  /// Requests of interrupt handlers.
  case interrupt
  /// Straight from `kernel_va`: large, long-lived ranges.
  case kernel
}

/// The purpose of a range, as its first page records it.
@frozen @usableFromInline package enum RangeKind: UInt8, Sendable {
  case heap = 1
  case metadata
  case interrupt
  case kernel
  case stack
  case device
  case contiguous
  case callerFrames
  case pageable

  /// The kind as the console prints it.
  package var description: StaticString {
    switch self {
    case .heap: "wired, heap"
    case .metadata: "wired, metadata"
    case .interrupt: "wired, interrupt"
    case .kernel: "wired"
    case .stack: "stack"
    case .device: "device registers"
    case .contiguous: "contiguous"
    case .callerFrames: "given frames"
    case .pageable: "pageable"
    }
  }

  /// Calls `visit` with each kind.
  @inlinable package static func forEach<E>(_ visit: (RangeKind) throws(E) -> Void) throws(E) {
    for number in UInt8(1)...9 {
      if let kind = RangeKind(rawValue: number) { try visit(kind) }
    }
  }

  var tag: RangeTag { RangeTag(rawValue: rawValue) }
  init(_ arena: WiredArena) {
    switch arena {
    case .heap: self = .heap
    case .metadata: self = .metadata
    case .interrupt: self = .interrupt
    case .kernel: self = .kernel
    }
  }
}

/// The contents of memory when it is allocated.
@frozen public enum InitialContents: UInt8, Sendable {
  /// Unknown.
  case unknown
  /// All bytes are zero.
  case zero
}
