// Pageable pages that all processors use, of an object that does not fit in memory, beside requests for runs, the
// laundry, the daemon, wires and holds.
//
// What two words of each page hold is kept beside, and changes under a sleeping lock: one of sixteen, so that
// threads do wait for each other. A page is read, written, held or wired; whatever moves it, writes it out or gives
// it up meanwhile, it holds what was written last. A page may not be had for want of memory, for any other reason
// never.

import ContiguousMemory
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// The object and what its pages hold: a handle.
struct SharedPages {
  private let memory: MemorySystem
  private let access: WordAccess
  private let object: MemoryObject
  private let address: VirtualAddress
  private let count: UInt64
  private let locks: UnsafeMutablePointer<SleepLock>
  private let expected: UnsafeMutablePointer<UInt64>

  private static var lockCount: Int { 16 }
  private static var locksSize: Int { (lockCount * MemoryLayout<SleepLock>.stride + 63) & ~63 }
  /// Bytes that it needs, aligned to 64 and zeroed.
  static func size(_ pages: PageCount) -> Int { locksSize + Int(pages.rawValue) * 16 }

  init(
    _ memory: MemorySystem, _ access: WordAccess, _ pages: PageCount, in room: UnsafeMutableRawPointer
  ) throws(StressRefusal) {
    self.memory = memory
    self.access = access
    count = pages.rawValue
    locks = room.bindMemory(to: SleepLock.self, capacity: Self.lockCount)
    for i in 0..<Self.lockCount { (locks + i).initialize(to: SleepLock(.workload)) }
    expected = (room + Self.locksSize).bindMemory(to: UInt64.self, capacity: Int(count) * 2)
    guard let object = try? memory.paging.createObject(Name("stress"), pages) else { throw .noMemory }
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

  /// The first word is the page's; the second lies elsewhere in each.
  private func offset(_ page: UInt64, _ place: UInt64) -> UInt64 {
    place == 0 ? 0 : 8 + page * 104 % (Page.size - 8)
  }
  private func word(_ page: UInt64, _ place: UInt64) -> VirtualAddress {
    address + PageCount(page) + ByteCount(offset(page, place))
  }
  private func expectation(_ page: UInt64, _ place: UInt64) -> UnsafeMutablePointer<UInt64> {
    expected + Int(page * 2 + place)
  }

  /// Runs `body` with nobody else at the page.
  private func alone(_ page: UInt64, _ body: () -> Void) {
    let lock = locks + Int(page % UInt64(Self.lockCount))
    lock.pointee.lock(on: memory.machine)
    body()
    lock.pointee.unlock(on: memory.machine)
  }

  /// Somewhere in the object, or among the few that are used more often.
  private func page(_ worker: StressWorker) -> UInt64 {
    worker.below(worker.oneIn(2) ? count : min(count, 64))
  }

  private func verify(_ page: UInt64, _ worker: StressWorker) {
    for place in 0..<2 as Range<UInt64> {
      do throws(PagingError) {
        let found = try access.load(word(page, place))
        let expected = expectation(page, place).pointee
        worker.require(
          found == expected, "a page is not what it was", word(page, place).rawValue, found: found,
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

  /// By its frame, which stays where it is as long as it is held.
  private func hold(_ page: UInt64, _ worker: StressWorker) {
    do throws(PagingError) {
      let frame = try memory.paging.hold(address + PageCount(page), .read)
      for place in 0..<2 as Range<UInt64> {
        let found = memory.machine.directMap.pointer(to: frame)
          .load(fromByteOffset: Int(offset(page, place)), as: UInt64.self)
        let expected = expectation(page, place).pointee
        worker.require(
          found == expected, "a page that is held is not what it was", word(page, place).rawValue,
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
      error == .noMemory, "a page can't be had", (address + PageCount(page)).rawValue,
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

  /// Looks at some pages, and writes to some.
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

  /// Wires some pages: each has a frame then, and keeps it.
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

  /// Gets in the way of those who use the pages.
  func disturb(_ worker: StressWorker) {
    worker.countOperation()
    switch worker.below(4) {
    case 0:
      let queue = PageQueue(rawValue: UInt8(worker.below(3))) ?? .laundry
      memory.paging.launder(
        queue, upTo: PageCount(1 + worker.below(64)), referenced: worker.oneIn(2) ? .skip : .launder)
    case 1: memory.paging.runDaemon()
    default:
      // Right where a page is, so that something has to be moved or written.
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

  /// Looks at every page once.
  func verifyAll(_ worker: StressWorker) {
    for page in 0..<count where !worker.stress.isTroubled { alone(page) { verify(page, worker) } }
  }
}
