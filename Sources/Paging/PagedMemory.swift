// Paging: memory whose contents outlive its frames.
//
// STRUCTURES
//   memory object    pages 0 to n - 1 of something: anonymous (swap behind it) or backed by a block device.
//                    A slot of eight bytes a page says where the page is (PageSlot). All slots exist
//                    from the object's creation on.
//   pageable range   addresses that map a part of an object; the only kind of kernel address with a map
//                    entry (MapEntry). Entries lie in a treap by address (MapEntryTree), and in their object's list.
//                    The page tables behind a range are allocated when it is registered.
//   page             a frame with role `pageable`. Its record names object and index, so the way from a page to
//                    its mappings is: page, object, entries, address. There are no reverse-map entries, and a
//                    fault can't run out of them.
//   queues           active, inactive, laundry, unswappable (PageQueues): each page that is neither wired nor
//                    under way is in one.
//   busy word        the word in a page's record that says who may change the page (PageBusyWord). Xbusy: one thread
//                    brings the page in, moves it or frees it; other threads sleep. Sbusy: the page is being written
//                    out; it may be read and even written to during that. Hold: a thread uses the frame by its physical
//                    address. Wire: the page stays where it is. Xbusy excludes all others. A page that is xbusy or
//                    sbusy stays its object's, and the object stays.
//
// INVARIANTS (`checkInvariants`; each message begins with the number)
//   PG-1  A resident slot and its page's record name each other; so does a cached hint that is still good.
//   PG-2  A mapping leads to the page that the slot names; it is writable only while the page is dirty.
//   PG-3  A page is valid unless it is xbusy. It is in one queue, unless it is wired or busy. Its wires are those of its
//         mappings, and a range's wires are those of its pages.
//   PG-4  At most one page slot refers to a slot of swap, and that page is anonymous and not dirty.
//   PG-5  A page that is neither dirty nor in swap nor on a device has never been written to: it is zero.
//   PG-6  Counts are exact: resident and swapped pages of an object, wired pages (a page once, however often it is
//         wired), queues, objects, ranges.
// Swap has its own, SW-1 to SW-3 (Swap/Swap.swift), and `checkInvariants` answers those first.
//
// HOW A PAGE BECOMES CLEAN. Under the object's lock all its mappings lose the right to write and the page loses
// "dirty". Then, with no lock, a TLB shootdown invalidates the mappings on every processor. Only then is the memory read
// for writing. A thread that writes during that faults, and the fault makes the page dirty again before it lets the
// write through. When the write is done the page is inspected again: it has a copy only if it is still clean. So
// no mapping can dirty a page unseen, and the processor's dirty bit is not used.
//
// HOW A PAGE IS RECLAIMED. A page that is xbusy, clean, unmapped and invalidated on every processor becomes a
// *cached* page: a free frame that keeps its identity and contents. Any request may allocate it, without the object;
// until then a fault reactivates it without I/O. The slot's hint is compared with the record under the lock of
// physical memory, so the object need not be notified.
//
// LOCKS, in their order: map entries (`pagingMap`), one object (`pagingObject`), the page tables', swap
// (`pagingSwap`), queues (`pagingQueues`), physical memory's. All spin, all bounded: a lookup is log n, work on
// an object is for one page at a time, or for a batch of 32 that leave a run. No device request, shootdown, wake or wait
// happens under any of them. An object's lock crosses calls as a `HeldObject`.
//
// COST. A zero-fill fault is some 1300 instructions beside zeroing the page. A lookup of a range is log n. Work on a
// page's mappings is a step for each range that maps its object. Laundering is some 1700 instructions a page for the
// checksum, beside the device; moving is a copy and some 900.
//
// EXHAUSTION. A fault allocates a frame and perhaps reads a page, nothing else. Page-out allocates nothing at
// all: requests, slots and tables exist from the start. A fault that finds no frame waits for a run of the
// page daemon, or makes one itself where that has no thread (PagingServices). It throws `noMemory` when that frees none.
//
// SOURCES. FreeBSD's vm_object, vm_page, vm_fault, vm_pageout (McKusick, Neville-Neil, Watson, "The Design and
// Implementation of the FreeBSD Operating System", chapter 6), with the reverse map by objects of DragonFly and Linux.

import BlockDevices
import CPlatform
import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization

/// Memory objects, pageable ranges and their pages: a handle.
public struct PagedMemory {
  struct State: ~Copyable {
    let machine: Machine
    let physical: FrameAllocator
    let tables: PageMap
    let space: KernelAddressSpace
    let swap: Swap
    let transfers: Transfers
    let objectCache: ObjectCache
    let entryCache: ObjectCache
    let type: MemoryType
    let map: Locked<MapEntryTree>
    let numbers: Locked<ObjectNumbers>
    let queues: Locked<PageQueues>
    /// Threads that wait for a page that is busy, or for the faults in a range to end.
    let waiting = WaitQueue("a page that is busy", .thread)
    /// Laundering runs that have pages under way, which are in no queue until then.
    let launderers = Atomic<UInt64>(0)
    /// Threads that wait for one of them to end because nothing else is left to reclaim, and how many they are.
    let laundered = WaitQueue("pages being laundered", .memory)
    let starvationCount = Atomic<UInt64>(0)
    let counters: UnsafeMutablePointer<PagingCounters>
    let marks: UnsafeMutablePointer<Watermarks>
    let services: UnsafeMutablePointer<PagingServices>
  }
  let storage: UnsafeMutablePointer<State>
  init(_ storage: UnsafeMutablePointer<State>) { self.storage = storage }

  /// The state, in place.
  @inline(__always) var state: State { unsafeAddress { UnsafePointer(storage) } }

  /// Where each part lies in the memory that `create` is given.
  private struct Layout {
    let state, counters, marks, services, numbers, swap, transfers: Int
    let size: ByteCount

    init() {
      var layout = StorageLayout()
      state = layout.add(State.self)
      counters = layout.add(PagingCounters.self)
      marks = layout.add(Watermarks.self)
      services = layout.add(PagingServices.self)
      numbers = layout.add(ObjectNumbers.storage)
      swap = layout.add(Swap.stateSize)
      transfers = layout.add(Transfers.size(count: transferCount))
      size = layout.size
    }
  }
  /// Pages that can be written out or read at a time: requests to devices that are allocated at the start.
  private static var transferCount: Int { 8 }

  /// Objects and ranges that can be made at system priority when memory is gone. No page-out and no fault makes any, so
  /// this is for callers that free memory by it, such as a kernel that maps a device to write to. Sixteen of each are
  /// one slab and a half, of which one page is kept in any case.
  package static var demand: Int { 16 }

  /// Bytes that `create` needs, aligned to 64.
  package static var stateSize: ByteCount { Layout().size }

  /// Brings paging up in `memory`, which it keeps. There is no swap device yet.
  ///
  /// `registered` are the objects and entries that early memory had for the two zones. Throws `noMemory` when kmem has none
  /// for them.
  package static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, tables: PageMap,
    space: KernelAddressSpace, kmem: KmemAllocator, registered: RegisteredPagingObjects
  ) throws(PagingError) -> PagedMemory {
    let layout = Layout()
    let storage = memory.part(State.self, at: layout.state)
    let counters = memory.part(PagingCounters.self, at: layout.counters)
    counters.initialize(to: PagingCounters())
    let marks = memory.part(Watermarks.self, at: layout.marks)
    marks.initialize(to: Watermarks(memory: physical.total))
    let services = memory.part(PagingServices.self, at: layout.services)
    services.initialize(to: PagingServices())
    let numbers = ObjectNumbers(memory + layout.numbers)
    let transfers = Transfers.create(in: memory + layout.transfers, count: transferCount, machine: machine)
    let swap = Swap.create(
      in: memory + layout.swap, machine: machine, physical: physical, transfers: transfers)
    let objects: ObjectCache
    let entries: ObjectCache
    let type = kmem.type(named: ShortName("paging"))
    do throws(KmemError) {
      objects = try kmem.createZone(
        name: ShortName("memory object"), size: RegisteredPagingObjects.objectSize, demand: Self.demand,
        type: type, registered: registered.objects)
      do throws(KmemError) {
        entries = try kmem.createZone(
          name: ShortName("map entry"), size: RegisteredPagingObjects.entrySize, demand: Self.demand,
          type: type, registered: registered.entries)
      } catch {
        kmem.destroy(objects)
        throw error
      }
    } catch {
      throw .noMemory
    }
    storage.initialize(
      to: State(
        machine: machine, physical: physical, tables: tables, space: space, swap: swap, transfers: transfers,
        objectCache: objects, entryCache: entries, type: type,
        map: Locked(.pagingMap, MapEntryTree()), numbers: Locked(.pagingMap, numbers),
        queues: Locked(.pagingQueues, PageQueues(physical)), counters: counters, marks: marks,
        services: services))
    physical.setPageReclaimer(
      PageReclaimer(UnsafeMutableRawPointer(storage)) { context, frames in
        PagedMemory(context).reclaimForWaiter(frames)
      })
    return PagedMemory(storage)
  }

  var machine: Machine { state.machine }
  var physical: FrameAllocator { state.physical }
  var tables: PageMap { state.tables }
  /// The swap device and its slots, to which anonymous pages are written.
  package var swap: Swap { state.swap }
  /// Whether any object lies on a device of its own, so that its pages need no slots of swap.
  package var hasDeviceObjects: Bool { counters.deviceObjects.value > 0 }
  @inline(__always) var counters: PagingCounters { unsafeAddress { UnsafePointer(state.counters) } }
  @inline(__always) var marks: Watermarks { unsafeAddress { UnsafePointer(state.marks) } }
  @inline(__always) var services: PagingServices { unsafeAddress { UnsafePointer(state.services) } }

  @inline(__always) func withQueues<R>(_ body: (inout PageQueues) -> R) -> R {
    state.queues.withLock { body(&$0) }
  }

  /// The record of a frame that is known to be a page.
  @inline(__always) func record(_ frame: FrameNumber) -> FrameRecordPointer {
    physical.knownRecord(frame)
  }

  /// Attaches the device that anonymous memory is written to. Pages that could not be written for lack of one
  /// are tried again. Errors as `Swap.attach`.
  public func attachSwap(_ device: BlockDevice) throws(PagingError) {
    do throws(PagingError) {
      try swap.attach(device)
    } catch {
      throw refused(error, device.name, device.pageCount)
    }
    retryUnswappable()
  }
}

/// The objects of the two zones that early memory supplies, so that the zones have their demand from the start.
package struct RegisteredPagingObjects {
  let objects: RegisteredObjects
  let entries: RegisteredObjects

  fileprivate static var objectSize: ByteCount { ByteCount(MemoryLayout<MemoryObject.State>.size) }
  fileprivate static var entrySize: ByteCount { ByteCount(MemoryLayout<MapEntry>.size) }

  /// Registers them. Nil when early memory has no pages for them.
  package init?(from early: EarlyMemory, directMap: DirectMap) {
    guard
      let objects = RegisteredObjects(
        PagedMemory.demand, size: Self.objectSize, alignment: .cacheLine, from: early, directMap: directMap),
      let entries = RegisteredObjects(
        PagedMemory.demand, size: Self.entrySize, alignment: .cacheLine, from: early, directMap: directMap)
    else { return nil }
    (self.objects, self.entries) = (objects, entries)
  }
}

/// Counts of events since the start, and of what exists now.
struct PagingCounters: ~Copyable {
  let faults = Atomic<UInt64>(0)
  let zeroFills = Atomic<UInt64>(0)
  let pageIns = Atomic<UInt64>(0)
  let reactivations = Atomic<UInt64>(0)
  let failedFaults = Atomic<UInt64>(0)
  let refusals = Atomic<UInt64>(0)
  let waits = Atomic<UInt64>(0)
  let written = Atomic<UInt64>(0)
  /// Pages of those that were written for runs of the daemon.
  let writtenForDaemon = Atomic<UInt64>(0)
  let failedWrites = Atomic<UInt64>(0)
  let redirtied = Atomic<UInt64>(0)
  let moved = Atomic<UInt64>(0)
  let cached = Atomic<UInt64>(0)
  let dropped = Atomic<UInt64>(0)
  let daemonRuns = Atomic<UInt64>(0)
  let scanned = Atomic<UInt64>(0)
  /// Pages that are wired now, each once.
  let wired = Atomic<UInt64>(0)
  /// Objects and ranges that exist now.
  let objects = Atomic<UInt64>(0)
  let deviceObjects = Atomic<UInt64>(0)
  let ranges = Atomic<UInt64>(0)

  init() {}
}

extension Atomic where Value == UInt64 {
  @inline(__always) borrowing func count(_ amount: UInt64 = 1) { add(amount, ordering: .relaxed) }
  @inline(__always) borrowing func uncount(_ amount: UInt64 = 1) { subtract(amount, ordering: .relaxed) }
  @inline(__always) var value: UInt64 { load(ordering: .relaxed) }
}

// All state behind a handle is under a lock, atomic, or belongs to one processor.
extension PagedMemory: @unchecked Sendable {}
