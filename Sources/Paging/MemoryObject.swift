// Memory objects: pages 0 to n - 1 of something, wherever each happens to be.
//
// The descriptor comes from an object cache, the slots from single frames (FrameArray), all at creation: a later
// operation never needs memory for its metadata. A frame record names its object by a number (32 bits), which a
// table of two levels translates into the descriptor (ObjectNumbers).

import BlockDevices
import MemoryPrimitives

/// The kind of store behind an object's pages.
@frozen public enum ObjectKind: UInt8, Sendable {
  /// Nothing: pages begin as zero and go to swap.
  case anonymous
  /// An extent of a block device.
  case device
}

/// A memory object: a handle.
public struct MemoryObject: Equatable {
  struct State: ~Copyable {
    let number: UInt32
    let name: ShortName
    let pageCount: UInt64
    let slots: FrameArray<UInt64>
    let device: BlockDevice?
    let deviceFirst: UInt64
    let core: Locked<Core>
  }
  /// Data under the object's lock, which also guards the slots.
  struct Core {
    /// The first of the ranges that map the object.
    var firstEntry: UnsafeMutablePointer<MapEntry>?
    var resident: UInt64 = 0
    var inSwap: UInt64 = 0
  }
  let storage: UnsafeMutablePointer<State>
  init(_ storage: UnsafeMutablePointer<State>) { self.storage = storage }

  /// The state, in place.
  @inline(__always) var state: State { unsafeAddress { UnsafePointer(storage) } }

  /// Numbers count from 1 and are reused.
  public var number: UInt32 { state.number }
  /// The name that the creator gave.
  public var name: ShortName { state.name }
  /// Pages of the object, resident or not.
  public var pageCount: PageCount { PageCount(state.pageCount) }
  /// Whether the pages belong to swap or to a device.
  public var kind: ObjectKind { state.device == nil ? .anonymous : .device }

  /// Acquires the object's lock, until the answer is released.
  @inline(__always) func acquire() -> HeldObject {
    HeldObject(held: state.core.acquire(), object: self)
  }

  /// The slot of a page below `pageCount`, for a checker: sound only while nothing else uses the object.
  @inline(__always) func quietSlot(_ index: UInt64) -> PageSlotPointer {
    PageSlotPointer(state.slots.pointer(to: Int(index)))
  }

  public static func == (a: Self, b: Self) -> Bool { a.storage == b.storage }
}

/// An object whose lock is held. The lock is released when this is: a function that takes it `consuming` releases the
/// lock, a function that borrows it relies on the lock.
struct HeldObject: ~Copyable {
  let held: Held<MemoryObject.Core>
  let object: MemoryObject

  @inline(__always) var number: UInt32 { object.number }
  @inline(__always) var kind: ObjectKind { object.kind }
  @inline(__always) var pageCount: UInt64 { object.state.pageCount }

  @inline(__always) var core: MemoryObject.Core {
    _read { yield held.value }
    nonmutating _modify { yield &held.value }
  }

  /// The slot of a page below `pageCount`.
  @inline(__always) func slot(_ index: UInt64) -> PageSlotPointer { object.quietSlot(index) }

  /// Releases the lock.
  @inline(__always) consuming func release() { held.release() }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension MemoryObject: @unchecked Sendable {}
