// Paging: memory whose contents outlive its frames.
//
// Source: FreeBSD's vm_object, vm_page, vm_fault, vm_pageout (McKusick, Neville-Neil, Watson, "The Design and
// Implementation of the FreeBSD Operating System", chapter 6), with the reverse map by objects that
// DragonFly and Linux arrived at.
//
// STRUCTURES
//   memory object    pages 0 to n - 1 of something: anonymous (swap behind it) or backed by a block device.
//                    A slot of eight bytes a page says where the page is (PageSlot). All slots are there
//                    from the object's creation on.
//   pageable range   addresses that show a part of an object; the only kind of kernel address with a map
//                    entry (MapEntry). Entries lie in a treap by address, and in their object's list. The
//                    tables behind a range are made when it is registered.
//   page             a frame with role `pageable`. Its record names object and index, so the way from a page to
//                    its mappings is: page, object, entries, address. There are no reverse-map entries, and a
//                    fault that needs none can't run out of them.
//   queues           active, inactive, laundry, unswappable (PageQueues): each page that is neither wired nor
//                    on its way is in one.
//
// CLAIMS. The word in a page's record, changed by compare-and-swap only (PageClaims). *Exclusive* (busy):
// somebody brings the page in, moves it or gives it up; who meets it sleeps. *Shared*: it is being written
// out; it may be read and even written to meanwhile. *Hold*: somebody uses the frame by its physical address.
// *Wire*: it stays where it is. Exclusive is only had when there is nothing else. Who has a page exclusive
// or shared may rely on it to stay the object's, and on the object to stay.
//
// LAWS (checkInvariants)
//   1. A resident slot and its page's record name each other; so does a cached hint that is still good.
//   2. A mapping leads to the page that the slot names; it is writable only while the page is dirty.
//   3. A page is valid unless it is exclusive. It is in one queue, if it is not wired or claimed.
//   4. A slot of swap is referred to by one page slot at most, and that page is not dirty.
//   5. A page that is neither dirty nor in swap nor on a device has never been written to: it is zero.
//   6. Counts: resident pages of an object, wired pages (a page once, however often it is wired), queues.
//
// HOW A PAGE BECOMES CLEAN. Under the object's lock all its mappings lose "writable" and the page loses
// "dirty"; then, with no lock, every processor forgets the mappings; only then is the memory read for
// writing. Whoever writes meanwhile faults, and the fault makes the page dirty again before it lets the write
// through. When the write is done the page is looked at again: only if it is still clean has it a copy. So
// no mapping can dirty a page unseen, and no bit that the processor sets has to be caught.
//
// HOW A PAGE IS GIVEN UP. Claimed exclusive, clean, unmapped, forgotten by every processor, it becomes a
// *cached* page: a free frame that keeps its name and contents. Any request may take it, without the object;
// until then a fault takes it back without I/O. The slot's hint is compared with the record under the lock of
// physical memory, so nobody has to tell the object.
//
// LOCKS, in their order: map entries (`pagingMap`), one object (`pagingObject`), the page tables', swap
// (`pagingSwap`), queues (`pagingQueues`), physical memory's. All spin, all bounded: a lookup is log n, work on
// an object is for one page at a time, or for a batch of 32 that leave a run. Nothing is asked of a device, shot
// down, woken or waited for under any of them.
//
// WHEN MEMORY IS GONE. A fault takes a frame and perhaps reads a page, nothing else. Page-out takes nothing at
// all: requests, slots and tables are there from the start. A fault that finds no frame waits for a run of the
// page daemon, or makes one itself where that has no thread (Services), and throws `noMemory` when that frees none.

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
    let map: Locked<RangeMap>
    let numbers: Locked<ObjectNumbers>
    let queues: Locked<PageQueues>
    /// Who waits for a page that is busy, or for the faults in a range to end.
    let waiting = WaitQueue("a page that is busy", .thread)
    /// Runs of the laundry that have pages in flight, which are in no queue meanwhile.
    let launderers = Atomic<UInt64>(0)
    /// Who waits for one of them to end, as nothing else is left to be given up, and how many do.
    let laundered = WaitQueue("pages being laundered", .memory)
    let starved = Atomic<UInt64>(0)
    let counters: UnsafeMutablePointer<PagingCounters>
    let marks: UnsafeMutablePointer<Watermarks>
    let services: UnsafeMutablePointer<Services>
  }
  let state: UnsafeMutablePointer<State>
  init(state: UnsafeMutablePointer<State>) { self.state = state }

  private static func rounded(_ size: Int) -> Int { (size + 63) & ~63 }
  private static var ownSize: Int {
    rounded(MemoryLayout<State>.size) + rounded(MemoryLayout<PagingCounters>.size)
      + rounded(MemoryLayout<Watermarks>.size) + rounded(MemoryLayout<Services>.size)
  }
  /// Pages that can be written out or read at a time: requests to devices that are made at the start.
  private static var transferCount: Int { 8 }

  /// Bytes that `create` needs, aligned to 64.
  public static var stateSize: ByteCount {
    ByteCount(
      ownSize + rounded(Int(ObjectNumbers.storage.rawValue)) + rounded(Int(Swap.stateSize.rawValue))
        + rounded(Int(Transfers.size(count: transferCount).rawValue)))
  }

  /// Brings paging up in `memory`, which it keeps. There is no swap device yet.
  ///
  /// Throws `noMemory` when kmem has none for the two caches.
  public static func create(
    in memory: UnsafeMutableRawPointer, machine: Machine, physical: FrameAllocator, tables: PageMap,
    space: KernelAddressSpace, kmem: KmemAllocator
  ) throws(PagingError) -> PagedMemory {
    var at = memory
    func place(_ size: Int) -> UnsafeMutableRawPointer {
      defer { at += rounded(size) }
      return at
    }
    let state = place(MemoryLayout<State>.size).bindMemory(to: State.self, capacity: 1)
    let counters = place(MemoryLayout<PagingCounters>.size)
      .bindMemory(to: PagingCounters.self, capacity: 1)
    counters.initialize(to: PagingCounters())
    let marks = place(MemoryLayout<Watermarks>.size).bindMemory(to: Watermarks.self, capacity: 1)
    marks.initialize(to: Watermarks(memory: physical.total))
    let services = place(MemoryLayout<Services>.size).bindMemory(to: Services.self, capacity: 1)
    services.initialize(to: Services())
    let numbers = ObjectNumbers(place(Int(ObjectNumbers.storage.rawValue)))
    let transfers = Transfers.create(
      in: place(Int(Transfers.size(count: transferCount).rawValue)), count: transferCount, machine: machine)
    let swap = Swap.create(
      in: place(Int(Swap.stateSize.rawValue)), machine: machine, physical: physical, transfers: transfers)
    let objects: ObjectCache
    let entries: ObjectCache
    do throws(KmemError) {
      objects = try kmem.createCache(
        name: Name("memory object"), size: ByteCount(MemoryObject.size), alignment: Alignment(64)!)
      do throws(KmemError) {
        entries = try kmem.createCache(
          name: Name("map entry"), size: ByteCount(MemoryLayout<MapEntry>.size), alignment: Alignment(64)!)
      } catch {
        kmem.destroy(objects)
        throw error
      }
    } catch {
      throw .noMemory
    }
    state.initialize(
      to: State(
        machine: machine, physical: physical, tables: tables, space: space, swap: swap, transfers: transfers,
        objectCache: objects, entryCache: entries, type: kmem.type(named: Name("paging")),
        map: Locked(.pagingMap, RangeMap()), numbers: Locked(.pagingMap, numbers),
        queues: Locked(.pagingQueues, PageQueues(physical)), counters: counters, marks: marks,
        services: services))
    return PagedMemory(state: state)
  }

  var machine: Machine { state.pointee.machine }
  var physical: FrameAllocator { state.pointee.physical }
  var tables: PageMap { state.pointee.tables }
  /// Where anonymous pages are written to.
  public var swap: Swap { state.pointee.swap }
  /// Whether any object lies on a device of its own, so that its pages take no slots of swap.
  public var hasDeviceObjects: Bool { counters.pointee.deviceObjects.value > 0 }
  var counters: UnsafeMutablePointer<PagingCounters> { state.pointee.counters }

  @inline(__always) func withQueues<R>(_ body: (inout PageQueues) -> R) -> R {
    state.pointee.queues.withLock { body(&$0) }
  }

  /// The record of a frame that is known to be a page.
  @inline(__always) func record(_ frame: FrameNumber) -> FrameRecordPointer {
    physical.knownRecord(frame)
  }

  /// Gives anonymous memory a device to be written to. Pages that could not be written for want of one
  /// are looked at again.
  public func attachSwap(_ device: BlockDevice) throws(PagingError) {
    try swap.attach(device)
    retryUnswappable()
  }
}

/// What happened, since the start.
struct PagingCounters: ~Copyable {
  let faults = Atomic<UInt64>(0)
  let zeroFills = Atomic<UInt64>(0)
  let pageIns = Atomic<UInt64>(0)
  let reactivations = Atomic<UInt64>(0)
  let failedFaults = Atomic<UInt64>(0)
  let waits = Atomic<UInt64>(0)
  let written = Atomic<UInt64>(0)
  /// Of those, for runs of the daemon.
  let writtenForDaemon = Atomic<UInt64>(0)
  let failedWrites = Atomic<UInt64>(0)
  let redirtied = Atomic<UInt64>(0)
  let moved = Atomic<UInt64>(0)
  let cached = Atomic<UInt64>(0)
  let dropped = Atomic<UInt64>(0)
  let daemonRuns = Atomic<UInt64>(0)
  let scanned = Atomic<UInt64>(0)
  /// Pages wired now, each once.
  let wired = Atomic<UInt64>(0)
  /// Objects and resident pages now.
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
