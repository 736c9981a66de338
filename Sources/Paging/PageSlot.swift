// The place of an object's page: one word.
//
//    0-31  the frame, when there is one
//   32-61  the slot of swap that holds a copy, all ones for none
//   62-63  the meaning of the frame: none, resident, or a cached page's hint, which may be stale

import MemoryPrimitives

/// The value of a slot.
struct PageSlot: Equatable {
  enum Presence: UInt64 { case absent, resident, cached }

  var rawValue: UInt64
  init(rawValue: UInt64) { self.rawValue = rawValue }
  init(_ presence: Presence, _ frame: FrameNumber, _ swap: SwapSlot) {
    rawValue = UInt64(frame.rawValue) | UInt64(swap.rawValue) << 32 | presence.rawValue << 62
  }

  /// A page that was never touched: it reads as zero, or as the device has it.
  static var untouched: Self { Self(.absent, .none, .none) }

  var presence: Presence { Presence(rawValue: rawValue >> 62) ?? .absent }
  var frame: FrameNumber { FrameNumber(UInt32(truncatingIfNeeded: rawValue)) }
  var swap: SwapSlot { SwapSlot(UInt32(truncatingIfNeeded: rawValue >> 32) & SwapSlot.none.rawValue) }
}

/// The slot of one page, in place: guarded by its object's lock.
struct PageSlotPointer {
  private let word: UnsafeMutablePointer<UInt64>
  init(_ word: UnsafeMutablePointer<UInt64>) { self.word = word }

  var value: PageSlot {
    get { PageSlot(rawValue: word.pointee) }
    nonmutating set { word.pointee = newValue.rawValue }
  }
}
