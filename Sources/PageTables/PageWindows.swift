// Page windows: two frames one behind the other, for the processor that opens the window.
//
// Each processor has a window for threads and one for interrupt handlers: two adjacent pages, whose tables exist since
// boot. To open one stores two entries, to close it clears them and invalidates two pages on this processor alone. So
// nothing is allocated, no lock is taken, and no other processor is asked. It can't fail.
//
// STRUCTURES
//   A window has four pages of addresses: two for frames, and two that stay unmapped, so that an access beyond the end
//   faults. A processor has two windows, so a table page holds those of 64 processors.
//   A place is marked in its entry by a bit that the processor ignores, and is in use when it is present. That is the
//   only record. The counts of leaves leave windows out, because those counts are under the tables' lock.
//
// DEPTHS. A thread has depth 0, an interrupt handler depth 1 (`cp_handling`). Handlers run with interrupts off, so none
// interrupts another. A function that one processor makes another run is a handler there, but at the depth of its caller
// where a processor runs it for itself. An NMI has no depth: its handler stops the processor or reports, by the direct
// map.
//
// PINNED. A thread with an open window stays on its processor, and no other thread runs there: a tick that comes
// then leaves the switch to the next tick. Interrupts stay on. A thread must not sleep or take a page fault before
// it has closed the window.
//
// WHY LOCAL INVALIDATION IS ENOUGH
//   To open: the entry was not present, and no processor caches such an entry (SDM vol. 3, 4.10.2.3, 4.10.4.3).
//   To close: after INVLPG this processor has no translation of the two pages, whatever it did ahead of time before
//   (4.10.4.1). INVLPG also drops global translations, and follows the store of the entry, as it is serializing.
//   Another processor may translate the window by speculation only, because no instruction of it uses the address. It
//   may keep that translation when the window has closed. Nothing reads through it but further speculation, whose
//   results no program sees. When the window's own processor opens it again, it has no such translation.
//   A walk by speculation stores nothing: the entry has accessed set, and dirty if it is writable.
//   One effect would remain: a line cached as write-back while the frame is mapped with another type by now (12.12.4).
//   So `PageMap.setAttribute` makes all processors invalidate everything.
//   The upper entries never change.
//
// TABLES THAT NO PROCESSOR LOADS, as in a host process, and those of a second system in a kernel. The bytes of their
// windows are copied out of the frames that a simulated processor reaches, and copied back after a write
// (SimulatedWindow.swift). A bit in the processor's number of an open window leads there, so the test for it costs nothing.
//
// SOURCES
//   Intel SDM vol. 3, 4.10; Linux, mm/highmem.c (kmap_local).

import CPlatform
import MemoryPrimitives
import Synchronization

/// The entries of windows, as code that is inlined elsewhere stores them: `PageTableEntry` describes the bits.
@usableFromInline enum WindowEntry {
  /// Marked as a place of a window, not present.
  @inlinable static var closed: UInt64 { 0x200 }
  /// Present, accessed, global, no-execute.
  @inlinable static var readOnly: UInt64 { 1 << 63 | 0x321 }
  /// The same, writable and dirty.
  @inlinable static var readWrite: UInt64 { 1 << 63 | 0x363 }
}

/// The page windows of one tree of tables: a handle.
@frozen @usableFromInline package struct PageWindows {
  @usableFromInline struct State {
    let map: PageMap
    /// The address of processor 0's first window.
    @usableFromInline var base: UInt64 = 0
    /// Added to the number of the processor in an open window: zero, or the bit for tables that no processor loads.
    @usableFromInline var simulated = PageWindows.simulatedBit
    /// Processors that have windows; zero before they are prepared.
    var processors: UInt64 = 0

    init(_ map: PageMap) { self.map = map }
  }
  /// The state; behind it, for each processor, the address of its first entry.
  @usableFromInline let state: UnsafeMutablePointer<State>

  @inlinable init(state: UnsafeMutablePointer<State>) { self.state = state }

  /// The first of the two entries of a window, as `Slot` has it.
  @usableFromInline typealias Entry = UnsafeMutablePointer<Atomic<UInt64>>

  @inlinable var entries: UnsafeMutablePointer<Entry> {
    UnsafeMutableRawPointer(state + 1).assumingMemoryBound(to: Entry.self)
  }

  static var simulatedBit: UInt32 { 1 << 31 }

  /// Pages of addresses that a window has.
  @inlinable static var stride: UInt64 { 4 }
  /// The windows of a processor.
  @inlinable static var depths: UInt64 { 2 }

  /// The address of a window.
  @inlinable func address(_ processor: UInt32, _ depth: UInt32) -> UInt64 {
    let number = UInt64(processor) &* Self.depths &+ UInt64(depth)
    return state.pointee.base &+ number &* (Self.stride << Page.shift)
  }

  @inlinable static func close(_ entry: Entry, _ address: UInt64) {
    store(WindowEntry.closed, WindowEntry.closed, in: entry)
    cp_invalidate_page(address)
    cp_invalidate_page(address &+ Page.size)
    cp_unpin()
  }

  @inlinable static func store(_ first: UInt64, _ second: UInt64, in entry: Entry) {
    entry[0].store(first, ordering: .releasing)
    entry[1].store(second, ordering: .releasing)
  }

  /// Opens this processor's window over two frames, one behind the other: for reading, or also for writing. Never fails,
  /// and takes no lock. 40 instructions with `close`.
  ///
  /// The caller keeps both frames from being freed or moved, and they are mapped write-back everywhere. It closes the
  /// window before it sleeps, and on the same processor. A second window at the same depth is a fault report.
  @inline(always)
  package func open(_ first: FrameNumber, _ second: FrameNumber, for access: AccessKind) -> OpenWindow {
    cp_pin()
    let (processor, depth) = (cp_processor_index(), cp_handling())
    let entry = entries[Int(processor)] + Int(depth &* UInt32(Self.stride))
    guard entry[0].load(ordering: .relaxed) == WindowEntry.closed else { return refuse(depth) }
    cp_note_window(depth, cp_here())
    let bits = access == .write ? WindowEntry.readWrite : WindowEntry.readOnly
    Self.store(first.address.rawValue | bits, second.address.rawValue | bits, in: entry)
    return OpenWindow(
      self, entry, address: address(processor, depth), processor: processor | state.pointee.simulated)
  }

  /// Opens the window, runs `body` with `count` of its bytes from `offset` on, and closes it.
  @inline(always)
  package func withBytes<R, E>(
    of first: FrameNumber, _ second: FrameNumber, at offset: Int, count: Int,
    _ body: (UnsafeRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    let window = open(first, second, for: .read)
    return try window.withBytes(at: offset, count: count, body)
  }

  /// The same for bytes that `body` changes.
  @inline(always)
  package func withMutableBytes<R, E>(
    of first: FrameNumber, _ second: FrameNumber, at offset: Int, count: Int,
    _ body: (UnsafeMutableRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    let window = open(first, second, for: .write)
    return try window.withMutableBytes(at: offset, count: count, body)
  }
}

// Entries are atomic, and the rest is written at boot.
extension PageWindows: @unchecked Sendable {}

// MARK: Misuse

extension PageWindows {
  /// Reports a window that is open already. Returns one that maps nothing.
  @usableFromInline @inline(never) func refuse(_ depth: UInt32) -> OpenWindow {
    let processor = cp_processor_index()
    report(
      "a page window was opened twice at one depth", address(processor, depth), depth,
      CallSite(codeAddress: cp_return_address()))
    cp_unpin()
    return OpenWindow(self, entries[Int(processor)], address: 0, processor: .max)
  }

  /// Closes a window that is simulated, and one that maps nothing. Any other belongs to another processor: reports that.
  @usableFromInline @inline(never) func closeSpecial(_ entry: Entry, _ address: UInt64, of processor: UInt32)
  {
    if isMine(address, of: processor, CallSite(codeAddress: cp_return_address())) {
      Self.close(entry, address)
    }
  }

  /// Whether a simulated window is this processor's. Reports one of another processor.
  func isMine(_ address: UInt64, of processor: UInt32, _ site: CallSite) -> Bool {
    if cp_processor_index() | Self.simulatedBit == processor { return true }
    if processor != .max { report("the page window of another processor was used", address, nil, site) }
    return false
  }

  private func report(_ what: StaticString, _ address: UInt64, _ depth: UInt32?, _ site: CallSite) {
    var fault = FaultReport(.windowMisuse, what, address, .virtualAddress)
    if let depth { fault.openedAt = CallSite(codeAddress: cp_window_site(depth)) }
    fault.reportedAt = site
    map.machine.report(fault)
  }
}
