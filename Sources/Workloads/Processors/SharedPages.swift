// Pageable pages that all processors use, of an object that does not fit in memory, beside requests for runs, the
// laundry, the daemon, wires and holds.
//
// The table `expected` has the contents of two words of each page. They change under a sleeping lock, one of sixteen,
// so that threads do wait for each other. A page is read, written, held or wired. It holds the words that were
// written last, though other threads move it, write it out or reclaim it. An access may fail because memory is short,
// and for no other reason.

import ContiguousMemory
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// The object, and the expected contents of its pages: a handle.
struct SharedPages {
  private let memory: MemorySystem
  private let access: WordAccess
  private let object: MemoryObject
  private let address: VirtualAddress
  private let count: UInt64
  private let locks: UnsafeMutablePointer<SleepLock>
  private let expected: UnsafeMutablePointer<UInt64>

  private static var lockCount: Int { 16 }

  /// The offsets of the parts of its memory.
  private struct Parts {
    let locks: Int
    let expected: Int
    let size: ByteCount

    init(_ pages: PageCount) {
      var layout = StorageLayout()
      locks = layout.add(SleepLock.self, count: lockCount)
      expected = layout.add(UInt64.self, count: Int(pages.rawValue) * 2)
      size = layout.size
    }
  }

  /// Bytes that it needs, aligned to a cache line and zeroed.
  static func size(_ pages: PageCount) -> ByteCount { Parts(pages).size }

  init(
    _ memory: MemorySystem, _ access: WordAccess, _ pages: PageCount, in storage: UnsafeMutableRawPointer
  ) throws(StressError) {
    self.memory = memory
    self.access = access
    count = pages.rawValue
    let parts = Parts(pages)
    locks = storage.part(SleepLock.self, at: parts.locks, count: Self.lockCount)
    for i in 0..<Self.lockCount { (locks + i).initialize(to: SleepLock(.workload)) }
    expected = storage.part(UInt64.self, at: parts.expected, count: Int(count) * 2)
    guard let object = try? memory.paging.createObject(ShortName("stress"), pages) else { throw .noMemory }
    guard let address = try? memory.paging.map(object, count: pages) else {
      memory.paging.destroy(object)
      throw .noMemory
    }
    self.object = object
    self.address = address
  }

  func end(_ memory: MemorySystem) {
    memory.paging.unmap(address, PageCount(count))
    memory.paging.destroy(object)
  }

  // MARK: Words

  /// The first word is that of the page; the second has another offset in each page.
  private func offset(_ page: UInt64, _ place: UInt64) -> UInt64 {
    place == 0 ? 0 : 8 + page * 104 % (Page.size - 8)
  }
  private func word(_ page: UInt64, _ place: UInt64) -> VirtualAddress {
    address + PageCount(page) + ByteCount(offset(page, place))
  }
  private func expectation(_ page: UInt64, _ place: UInt64) -> UnsafeMutablePointer<UInt64> {
    expected + Int(page * 2 + place)
  }

  /// Runs `body` with no other worker at the page.
  private func alone(_ page: UInt64, _ body: () -> Void) {
    locks[Int(page % UInt64(Self.lockCount))].withLock(on: memory.machine) { body() }
  }

  /// A page anywhere in the object, or among the few that are used more often.
  private func page(_ worker: StressWorker) -> UInt64 {
    worker.below(worker.oneIn(2) ? count : min(count, 64))
  }

  private func verify(_ page: UInt64, _ worker: StressWorker) {
    for place in 0..<2 as Range<UInt64> {
      do throws(PagingError) {
        let found = try access.load(word(page, place))
        let expected = expectation(page, place).pointee
        worker.require(
          found == expected, "a page has changed", word(page, place).rawValue, found: found,
          expected: expected)
      } catch {
        refused(error, page, worker)
      }
    }
  }

  private func rewrite(_ page: UInt64, _ worker: StressWorker) {
    for place in 0..<2 as Range<UInt64> {
      let stamp = worker.stamp()
      do throws(PagingError) {
        try access.store(word(page, place), stamp)
        expectation(page, place).pointee = stamp
      } catch {
        refused(error, page, worker)
      }
    }
  }

  /// Holds a page and reads it through its frame, which stays the page's while it is held.
  private func hold(_ page: UInt64, _ worker: StressWorker) {
    do throws(PagingError) {
      let frame = try memory.paging.hold(address + PageCount(page), .read)
      for place in 0..<2 as Range<UInt64> {
        let found = memory.machine.directMap.pointer(to: frame)
          .load(fromByteOffset: Int(offset(page, place)), as: UInt64.self)
        let expected = expectation(page, place).pointee
        worker.require(
          found == expected, "a page that is held has changed", word(page, place).rawValue,
          found: found, expected: expected)
      }
      memory.paging.unhold(frame)
    } catch {
      refused(error, page, worker)
    }
  }

  private func refused(_ error: PagingError, _ page: UInt64, _ worker: StressWorker) {
    worker.countRefusal()
    worker.require(
      error == .noMemory, "an access to a page failed", (address + PageCount(page)).rawValue,
      found: UInt64(error.rawValue))
  }

  // MARK: Turns

  /// Writes to this worker's share of all pages.
  func fill(_ worker: StressWorker) {
    let (number, workers) = (UInt64(worker.record.pointee.number), UInt64(worker.stress.plan.workers))
    for page in stride(from: number, to: count, by: Int(workers)) {
      if worker.stress.isOver { return }
      alone(page) { rewrite(page, worker) }
      worker.countOperation()
    }
  }

  /// Checks some pages, and writes to some.
  func use(_ worker: StressWorker) {
    for _ in 0..<8 where !worker.stress.isOver {
      let page = page(worker)
      alone(page) {
        switch worker.below(16) {
        case 0..<8: verify(page, worker)
        case 8..<15: rewrite(page, worker)
        default: hold(page, worker)
        }
      }
      worker.record.pointee.tally.pages += 1
      worker.countOperation()
    }
  }

  /// Wires some pages, and checks that each keeps its frame.
  func wire(_ worker: StressWorker) {
    let first = page(worker)
    let pages = min(1 + worker.below(6), count - first)
    let start = address + PageCount(first)
    worker.countOperation()
    do throws(PagingError) {
      try memory.paging.wire(start, PageCount(pages), holes: .forbidden)
    } catch {
      return refused(error, first, worker)
    }
    for page in first..<(first + pages) {
      let place = address + PageCount(page)
      let frame = memory.pageTables.mapping(at: place)?.frame
      worker.require(frame != nil, "a wired page is not mapped", place.rawValue)
      alone(page) { worker.oneIn(2) ? verify(page, worker) : rewrite(page, worker) }
      let after = memory.pageTables.mapping(at: place)?.frame
      worker.require(
        frame == after, "a wired page was moved", place.rawValue, found: UInt64(after?.rawValue ?? 0),
        expected: UInt64(frame?.rawValue ?? 0))
    }
    memory.paging.unwire(start, PageCount(pages))
  }

  /// Launders, reclaims, or requests runs of frames in the way of the object's pages.
  func disturb(_ worker: StressWorker) {
    worker.countOperation()
    switch worker.below(4) {
    case 0:
      let queue = PageQueue(rawValue: UInt8(worker.below(3))) ?? .laundry
      memory.paging.launder(
        queue, upTo: PageCount(1 + worker.below(64)), referenced: worker.oneIn(2) ? .skip : .launder)
    case 1: memory.paging.runDaemon()
    default:
      // At the frame of a page, so that pages must be moved or written.
      var request = ContiguousRequest(PageCount(UInt64(1) << worker.below(7)))
      if let frame = memory.pageTables.mapping(at: address + PageCount(page(worker)))?.frame {
        request.constraints.low = PhysicalAddress(UInt64(frame.rawValue & ~127) << Page.shift)
        request.constraints.high = PhysicalAddress(request.constraints.low.rawValue + 128 << Page.shift)
      }
      if let run = try? memory.contiguous.allocContig(request) {
        let map = memory.machine.directMap
        let stamp = worker.stamp()
        for i in 0..<run.count.rawValue {
          map.pointer(to: run.first + PageCount(i)).storeBytes(of: stamp, as: UInt64.self)
        }
        for i in 0..<run.count.rawValue {
          let found = map.pointer(to: run.first + PageCount(i)).load(as: UInt64.self)
          worker.require(
            found == stamp, "a contiguous run has a second owner", UInt64(run.first.rawValue) + i,
            found: found, expected: stamp)
        }
        memory.contiguous.releaseContig(run)
      } else {
        worker.countRefusal()
      }
    }
  }

  /// Checks every page once.
  func verifyAll(_ worker: StressWorker) {
    for page in 0..<count where !worker.stress.hasFailed { alone(page) { verify(page, worker) } }
  }
}
