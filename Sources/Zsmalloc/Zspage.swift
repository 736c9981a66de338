// The descriptor of a zspage, 64 bytes: one cache line of the table of descriptors.
//
//    0 pins 4             readers that look at its objects; the highest bit: one processor moves objects or pages
//    4 next 4, previous 4 its list of its class
//   12 class 1            number and one; 0 for a free descriptor
//   13 pages 1            frames that it has at this moment
//   14 used 1             slots in use
//   15 group 1            the list that it is in
//   16 occupied 16        a bit for each slot in use
//   32 frames 32          of each page of the chain, none where no object lies. A zspage of the huge class has one
//                         page; the second word names its object's handle.
//
// Everything but the pins and the frames belongs to the allocator's lock. Frames change under the lock, with no
// reader.

import MemoryPrimitives
import Synchronization

/// The lists of a class, by the share of slots in use. A full zspage is in none.
enum FullnessGroup: UInt8 {
  case quarter, half, threeQuarters, almostFull, full

  /// The lists of a class.
  static var listCount: Int { 4 }

  /// The group of a zspage with `used` of `slots` slots in use.
  @inline(__always) init(used: Int, of slots: Int) {
    self =
      used == slots ? .full : FullnessGroup(rawValue: UInt8(truncatingIfNeeded: used * 4 / slots)) ?? .full
  }
}

/// The descriptor of a zspage, in place.
struct Zspage {
  let raw: UnsafeMutableRawPointer

  static var size: Int { 64 }
  /// The bytes that a free descriptor uses for the link of its table.
  static var linkOffset: Int { 4 }
  /// The pin of a processor that moves objects or pages.
  private static var exclusive: UInt32 { 1 << 31 }

  private var pins: UnsafeMutablePointer<Atomic<UInt32>> {
    raw.assumingMemoryBound(to: Atomic<UInt32>.self)
  }
  /// The zspages beside it in its list.
  var next: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 4, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 4, as: UInt32.self) }
  }
  var previous: UInt32 {
    get { raw.loadUnaligned(fromByteOffset: 8, as: UInt32.self) }
    nonmutating set { raw.storeBytes(of: newValue, toByteOffset: 8, as: UInt32.self) }
  }
  private func byte(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt8>> {
    (raw + offset).assumingMemoryBound(to: Atomic<UInt8>.self)
  }
  /// The number of its class; nil for a free descriptor. Readers look at it without the lock.
  @inline(__always) var sizeClass: Int? {
    get {
      let number = byte(12).pointee.load(ordering: .relaxed)
      return number == 0 ? nil : Int(number) - 1
    }
    nonmutating set { byte(12).pointee.store(newValue.map { UInt8($0 + 1) } ?? 0, ordering: .relaxed) }
  }
  /// The number of the class of a zspage that exists.
  @inline(__always) var number: Int {
    guard let sizeClass else { preconditionFailure("a zspage that does not exist") }
    return sizeClass
  }
  /// Frames that it has.
  var heldPages: Int {
    get { Int(raw.load(fromByteOffset: 13, as: UInt8.self)) }
    nonmutating set { raw.storeBytes(of: UInt8(newValue), toByteOffset: 13, as: UInt8.self) }
  }
  /// Slots in use.
  var used: Int {
    get { Int(raw.load(fromByteOffset: 14, as: UInt8.self)) }
    nonmutating set { raw.storeBytes(of: UInt8(newValue), toByteOffset: 14, as: UInt8.self) }
  }
  var group: FullnessGroup {
    get { FullnessGroup(rawValue: raw.load(fromByteOffset: 15, as: UInt8.self)) ?? .full }
    nonmutating set { raw.storeBytes(of: newValue.rawValue, toByteOffset: 15, as: UInt8.self) }
  }
  var occupied: SlotSet {
    get { SlotSet(bits: raw.loadUnaligned(fromByteOffset: 16, as: UInt128.self)) }
    nonmutating set { raw.storeBytes(of: newValue.bits, toByteOffset: 16, as: UInt128.self) }
  }
  /// The frame of a page of the chain.
  @inline(__always) func frame(_ page: Int) -> FrameNumber {
    FrameNumber(raw.loadUnaligned(fromByteOffset: 32 &+ 4 &* page, as: UInt32.self))
  }
  func setFrame(_ page: Int, _ frame: FrameNumber) {
    raw.storeBytes(of: frame.rawValue, toByteOffset: 32 + 4 * page, as: UInt32.self)
  }
  /// Of a zspage of the huge class: the index of its object's handle.
  var hugeHandle: UInt32 {
    get { frame(1).rawValue }
    nonmutating set { setFrame(1, FrameNumber(newValue)) }
  }

  /// Makes an empty zspage of a free descriptor. Its pins stay: a reader may just be finding out that its object has
  /// moved.
  func initialize(class number: Int) {
    sizeClass = number
    (heldPages, used, occupied) = (0, 0, SlotSet(bits: 0))
    for page in 0..<ChainClasses.longestChain { setFrame(page, .none) }
  }

  // MARK: Pins

  /// Keeps objects and pages where they are until `unpin`. Answers false while a processor moves some.
  @inline(__always) func tryPin() -> Bool {
    if pins.pointee.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue & Self.exclusive == 0 {
      return true
    }
    unpin()
    return false
  }
  @inline(__always) func unpin() { pins.pointee.wrappingSubtract(1, ordering: .releasing) }

  /// Keeps readers off, if there are none: for a bounded time, with the allocator's lock held.
  @inline(__always) func tryExclude() -> Bool {
    pins.pointee.compareExchange(
      expected: 0, desired: Self.exclusive, ordering: .acquiringAndReleasing
    ).exchanged
  }
  @inline(__always) func admit() { pins.pointee.wrappingSubtract(Self.exclusive, ordering: .releasing) }

  /// Whether no reader has pinned it, and none is excluded.
  var isQuiet: Bool { pins.pointee.load(ordering: .relaxed) == 0 }
}
