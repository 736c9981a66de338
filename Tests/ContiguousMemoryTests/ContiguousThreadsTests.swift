import ContiguousMemory
import CPlatform
import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Synchronization
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// swab(3), which copies pairs of bytes with the two exchanged; Swift's view of libc leaves it out.
private let swapBytes = unsafeBitCast(
  dlsym(nil, "swab"), to: (@convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void).self)

/// Processors that use pageable memory while others launder it, move it and ask for runs of it.
final class ContiguousThreadsTests: XCTestCase {
  /// A processor: it walks the tables, remembers what it found until it is asked to invalidate it, and faults. One
  /// access is one step to all who shoot down.
  private final class Core: @unchecked Sendable {
    private let lock = NSLock()
    private var known: [UInt64: (frame: FrameNumber, isWritable: Bool)] = [:]
    let system: TestSystem
    var faults = 0

    init(_ system: TestSystem) { self.system = system }

    func invalidate(_ address: UInt64) {
      lock.withLock {
        if address == .max { known = [:] } else { known[address >> Page.shift] = nil }
      }
    }

    private func find(_ address: VirtualAddress, _ kind: AccessKind) -> UnsafeMutableRawPointer? {
      let page = address.rawValue >> Page.shift
      if let entry = known[page], kind == .read || entry.isWritable {
        return system.host.machine.directMap.pointer(to: entry.frame) + Int(address.offsetInPage)
      }
      guard let frame = system.memory.pageTables.access(address, kind) else { return nil }
      if known.count > 64 { known = [:] }
      known[page] = (frame, kind == .write)
      return system.host.machine.directMap.pointer(to: frame) + Int(address.offsetInPage)
    }

    func load(_ address: VirtualAddress) throws(PagingError) -> UInt64 {
      while true {
        let word = lock.withLock { find(address, .read).map { $0.load(as: UInt64.self) } }
        if let word { return word }
        faults += 1
        invalidate(address.rawValue)
        try system.paging.fault(address, .read)
      }
    }

    func store(_ address: VirtualAddress, _ word: UInt64) throws(PagingError) {
      while true {
        let isDone = lock.withLock {
          guard let place = find(address, .write) else { return false }
          Self.put(word, place)
          return true
        }
        if isDone { return }
        faults += 1
        invalidate(address.rawValue)
        try system.paging.fault(address, .write)
      }
    }

    /// A page may be written to while a device reads it: then its copy is thrown away. To the thread sanitizer, which
    /// can't know that, this store is invisible: swab(3) is none of those that it watches.
    private static func put(_ word: UInt64, _ place: UnsafeMutableRawPointer) {
      let even: UInt64 = 0x00ff_00ff_00ff_00ff
      withUnsafeBytes(of: (word & even) << 8 | (word >> 8) & even) { swapBytes($0.baseAddress!, place, 8) }
    }
  }

  private final class Bed: @unchecked Sendable {
    let system: TestSystem
    let cores: [Core]
    private let over = Atomic<Bool>(false)

    var isOver: Bool { over.load(ordering: .acquiring) }
    func end() { over.store(true, ordering: .releasing) }

    /// Without services, a thread that finds no frame makes the runs of the page daemon.
    enum Services { case none, threads }
    private let services: Services

    init(frames: UInt64, cores count: Int, _ services: Services = .none) throws {
      self.services = services
      // Page daemon, laundry and trimmer are processors too, and so are who ends them and who started all.
      let more = services == .threads ? 5 : 0
      system = try TestSystem(runs: [(256, frames)], swap: 4096, processors: count + 2 + more)
      cores = (0..<count).map { [system] _ in Core(system) }
      system.host.runDevices = nil
      system.host.hasOtherThreads = true
    }

    deinit {
      guard cp_processor().pointee.invalidate_context == Unmanaged.passUnretained(self).toOpaque() else {
        return
      }
      cp_processor().pointee.invalidate = nil
      cp_processor().pointee.invalidate_context = nil
    }

    /// This thread's shootdowns reach all processors.
    func listen() {
      cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
      cp_processor().pointee.invalidate = { context, address in
        for core in Unmanaged<Bed>.fromOpaque(context!).takeUnretainedValue().cores {
          core.invalidate(address)
        }
      }
    }

    /// Runs the processors, `others` and the disk, each on a thread, until all processors are through.
    func run(
      _ body: @escaping @Sendable (Int, Core) -> Void, others: [@Sendable () -> Void]
    ) {
      let left = Counter(cores.count)
      let watchdog = DispatchWorkItem {
        fatalError("the threads have been at it for half an hour: a deadlock")
      }
      DispatchQueue.global().asyncAfter(deadline: .now() + 1800, execute: watchdog)
      var others = others
      if services == .threads {
        system.host.atStart = { [self] _ in listen() }
        others.append { [self] in
          XCTAssertTrue(system.memory.startServices())
          idle(100) { isOver }
          // The disk goes on until they are gone.
          system.memory.endServices()
        }
      }
      system.host.onThreads(cores.count + others.count + 1) { [self, others] index in
        listen()
        if index < cores.count {
          body(index, cores[index])
          if left.countDown() == 0 { end() }
        } else if index < cores.count + others.count {
          others[index - cores.count]()
          left.countOther()
        } else {
          // The disk, until no thread can make another request.
          while !isOver || left.others < others.count || system.disk.poll() {
            system.host.advance()
            if !system.disk.poll() {
              withInterruptsOff {}
              usleep(20)
            }
          }
        }
      }
      watchdog.cancel()
      system.host.hasOtherThreads = false
      system.host.runDevices = { [unowned system] in system.disk.poll() }
      listen()
    }
  }

  private final class Counter: Sendable {
    private let count: Atomic<Int>
    private let done = Atomic<Int>(0)
    init(_ count: Int) { self.count = Atomic(count) }
    func countDown() -> Int { count.subtract(1, ordering: .acquiringAndReleasing).newValue }
    func countOther() { done.add(1, ordering: .acquiringAndReleasing) }
    var others: Int { done.load(ordering: .acquiring) }
  }

  /// The word of each page that each processor has written.
  private final class Stamps: @unchecked Sendable {
    private let pages: Int
    private let all: UnsafeMutablePointer<UInt64>
    init(_ cores: Int, _ pages: UInt64) {
      self.pages = Int(pages)
      all = .allocate(capacity: cores * Int(pages))
      all.initialize(repeating: 0, count: cores * Int(pages))
    }
    deinit { all.deallocate() }
    func words(_ core: Int) -> UnsafeMutablePointer<UInt64> { all + core * pages }
  }

  /// A word of a page for each processor.
  private static func place(_ core: Int, _ page: UInt64) -> ByteCount {
    ByteCount(UInt64(core) * 512 + page % 60 * 8)
  }

  /// Two processors fault and write, wire and hold, over one object, while a third launders it, moves it and asks for
  /// runs: with less memory than the object has pages, when it is written out, and with more, when it is moved.
  func testThreadsUsePagesThatAThirdThreadLaunders() throws {
    let figures = try use(pages: 500, turns: 8000, seed: historySeed(51))
    XCTAssertGreaterThan(figures.written, 0)
  }

  func testThreadsUsePagesThatAThirdThreadMoves() throws {
    let figures = try use(pages: 120, turns: 60_000, seed: historySeed(52))
    XCTAssertGreaterThan(figures.moved, 0)
  }

  /// The same with the page daemon and the laundry as threads of their own.
  func testThreadsUsePagesThatServicesLaunder() throws {
    let figures = try use(pages: 500, turns: 8000, seed: historySeed(53), .threads)
    XCTAssertGreaterThan(figures.written, 0)
    XCTAssertGreaterThan(figures.daemonRuns, 0)
  }

  /// A thread that waits for memory makes the daemon reclaim pages, and is served.
  func testServicesMakeSpaceForAThreadThatWaits() throws {
    let bed = try Bed(frames: 400, cores: 2, .threads)
    let system = bed.system
    let area = try system.area(300)
    bed.run(
      { number, core in
        if number == 0 {
          for page in 0..<area.count { try! core.store(area[page], page + 1) }
          return
        }
        idle { system.physical.freeCount <= PageCount(UInt64(150)) }
        // Far more than is free, all at the priority that leaves the reserve alone.
        var taken: [FrameNumber] = []
        for _ in 0..<200 {
          do throws(PhysicalMemoryError) {
            taken.append(
              try system.physical.allocate(BlockOrder(0), role: .loaned, priority: .normal, waitUntil: .never)
            )
          } catch {
            XCTFail("\(error) after \(taken.count)")
          }
        }
        system.giveBack(taken)
      }, others: [])
    XCTAssertGreaterThan(system.paging.figures.daemonRuns, 0)
    XCTAssertFalse(system.paging.isServed)
    for page in 0..<area.count { XCTAssertEqual(try bed.cores[0].load(area[page]), page + 1) }
    system.check()
  }

  /// A block of more frames than the daemon leaves free of itself: it frees as many as that takes.
  func testServicesMakeSpaceForAThreadThatWaitsForManyFrames() throws {
    let bed = try Bed(frames: 400, cores: 1, .threads)
    let system = bed.system
    let area = try system.area(350)
    let order = BlockOrder(7)
    XCTAssertGreaterThan(order.frames, system.paging.freeTarget)
    bed.run(
      { _, core in
        for page in 0..<area.count { try! core.store(area[page], page + 1) }
        let deadline = Tick(system.host.machine.now.rawValue + 1_000_000)
        // It may come to nothing, as frames enough need not make a block; but not for want of frames.
        let block = try? system.physical.allocate(
          order, role: .loaned, priority: .normal, waitUntil: deadline)
        XCTAssertLessThan(system.host.machine.now, deadline)
        XCTAssertGreaterThan(system.physical.freeCount + (block == nil ? .zero : order.frames), order.frames)
        if let block { system.physical.free(block, order) }
      }, others: [])
    for page in 0..<area.count { XCTAssertEqual(try bed.cores[0].load(area[page]), page + 1) }
    system.check()
  }

  /// A waiter needs more than can be reclaimed while pages are wired: faults go on, and later it is served.
  func testAWaiterThatCantBeServedKeepsNoFaultWaiting() throws {
    let bed = try Bed(frames: 400, cores: 2, .threads)
    let system = bed.system
    let wired = try system.area(200)
    let area = try system.area(400)
    let order = BlockOrder(8)
    for page in 0..<wired.count { try system.paging.fault(wired[page], .write) }
    try system.paging.wire(wired[0], PageCount(wired.count), holes: .forbidden)
    bed.run(
      { number, core in
        if number == 1 {
          // Frames enough need not make a block; but it does not wait for ever.
          let block = try? system.physical.allocate(
            order, role: .loaned, priority: .normal, waitUntil: .never)
          if let block { system.physical.free(block, order) }
          return
        }
        idle { system.physical.awaited > .zero || system.physical.hasParkedWaiters }
        for page in 0..<area.count { try! core.store(area[page], page + 1) }
        for page in 0..<area.count { XCTAssertEqual(try! core.load(area[page]), page + 1) }
        system.paging.unwire(wired[0], PageCount(wired.count))
      }, others: [])
    system.check()
  }

  func testServicesNeedThreads() throws {
    let system = try TestSystem(runs: [(256, 400)], swap: 4096, processors: 2)
    XCTAssertFalse(system.memory.startServices())
    XCTAssertFalse(system.paging.isServed)
    let area = try system.area(500)
    for page in 0..<area.count { try system.paging.fault(area[page], .write) }
    XCTAssertGreaterThan(system.paging.figures.daemonRuns, 0)
    system.memory.endServices()
  }

  /// Loads and stores words of `area` as processor `number`, and wires and holds pages of it.
  private static func load(
    _ number: Int, _ core: Core, _ area: Area, _ stamps: Stamps, turns: UInt64, seed: UInt64,
    in system: TestSystem
  ) {
    var random = SeededRandom(seed: seed &+ UInt64(number))
    let mine = stamps.words(number)
    for turn in 0..<turns {
      let page = random.oneIn(3) ? random.below(area.count) : random.below(40)
      let address = area[page] + Self.place(number, page)
      do throws(PagingError) {
        switch random.below(16) {
        case 0..<6:
          let word = try core.load(address)
          XCTAssertEqual(word, mine[Int(page)], "STRATA_SEED=\(seed), page \(page)")
        case 6..<14:
          try core.store(address, turn + 1)
          mine[Int(page)] = turn + 1
        case 14:
          try system.paging.wire(area[page], .one, holes: .forbidden)
          let before = core.faults
          try core.store(address, turn + 1)
          mine[Int(page)] = turn + 1
          XCTAssertEqual(core.faults, before, "a wired page faulted, STRATA_SEED=\(seed)")
          system.paging.unwire(area[page], .one)
        default:
          let frame = try system.paging.hold(area[page], .write)
          let word = system.words(frame)[Int(Self.place(number, page).rawValue / 8)]
          XCTAssertEqual(word, mine[Int(page)], "STRATA_SEED=\(seed), page \(page)")
          system.paging.unhold(frame)
        }
      } catch {
        XCTAssertEqual(error, .noMemory, "STRATA_SEED=\(seed)")
      }
    }
  }

  /// Launders, runs the daemon and allocates runs until `bed` is over.
  private static func reclaim(_ area: Area, pages: UInt64, seed: UInt64, in bed: Bed) {
    let system = bed.system
    var random = SeededRandom(seed: seed &+ 77)
    while !bed.isOver {
      switch random.below(pages > 200 ? 8 : 40) {
      case 0: system.paging.launder(.active, upTo: PageCount(40), referenced: .launder)
      case 1: system.paging.launder(.inactive, upTo: PageCount(40))
      case 2: system.paging.runDaemon()
      case 3:
        // Allocates all free frames at the priority of an interrupt, so that no cached page is left.
        var taken: [FrameNumber] = []
        while taken.count < 40,
          let frame = try? system.physical.allocate(BlockOrder(0), role: .loaned, priority: .interrupt)
        {
          taken.append(frame)
        }
        system.giveBack(taken)
      default:
        var wanted = request(1 << random.below(6), aligned: 1 << random.below(5))
        if random.oneIn(2), let frame = system.place(area, random.below(area.count)).frame {
          // Right where a page is.
          let low = UInt64(frame.rawValue) & ~15
          wanted = request(16, low: low, high: low + 16)
        }
        guard case .success(let run) = system.ask(wanted) else { continue }
        system.checkGranted(run, wanted)
        for i in 0..<run.count.rawValue { system.words(run.first + PageCount(i))[3] = i }
        for i in 0..<run.count.rawValue {
          XCTAssertEqual(system.words(run.first + PageCount(i))[3], i)
        }
        system.give(run)
      }
    }
  }

  private func use(
    pages: UInt64, turns: UInt64, seed: UInt64, _ services: Bed.Services = .none
  ) throws -> PagingFigures {
    let bed = try Bed(frames: 400, cores: 2, services)
    let system = bed.system
    let area = try system.area(pages)
    let stamps = Stamps(2, area.count)
    bed.run(
      { number, core in Self.load(number, core, area, stamps, turns: turns, seed: seed, in: system) },
      others: [{ Self.reclaim(area, pages: pages, seed: seed, in: bed) }])
    system.check("STRATA_SEED=\(seed)")
    XCTAssertEqual(system.paging.wiredCount, .zero)
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    XCTAssertEqual(system.physical.count(.loaned), .zero)
    for page in 0..<area.count {
      for number in 0..<2 {
        let word = try bed.cores[number].load(area[page] + Self.place(number, page))
        XCTAssertEqual(word, stamps.words(number)[Int(page)], "STRATA_SEED=\(seed), page \(page)")
      }
    }
    system.release(area)
    system.check("STRATA_SEED=\(seed)")
    XCTAssertEqual(system.physical.count(.pageable), .zero)
    XCTAssertEqual(system.paging.swap.figures.used, .zero)
    let figures = system.paging.figures
    print(
      "\(figures.faults) faults, \(figures.moved) moved, \(figures.written) written, "
        + "\(figures.redirtied) redirtied, \(figures.waits) waits")
    return figures
  }

  /// Two processors at one page that is nowhere, in swap or cached: one frame comes of it.
  func testThreadsThatFaultOnOnePageInsertItOnce() throws {
    let bed = try Bed(frames: 300, cores: 2)
    let system = bed.system
    let area = try system.area(1)
    let turns = 400
    let gate = Atomic<Int>(0)
    bed.run(
      { number, core in
        for turn in 0..<turns {
          // Both at once.
          gate.add(1, ordering: .acquiringAndReleasing)
          while gate.load(ordering: .acquiring) < 4 * turn + 2 { sched_yield() }
          do throws(PagingError) {
            try system.paging.fault(area[0], (turn + number) % 3 == 0 ? .write : .read)
          } catch {
            XCTFail("\(error)")
          }
          gate.add(1, ordering: .acquiringAndReleasing)
          while gate.load(ordering: .acquiring) < 4 * turn + 4 { sched_yield() }
          guard number == 0 else { continue }
          XCTAssertEqual(system.physical.count(.pageable), .one, "turn \(turn)")
          XCTAssertEqual(system.paging.residentCount(area.object), .one)
          if turn % 2 == 0 { system.launderAll() }
          if turn % 4 == 0 { system.dropCached() }
        }
      }, others: [])
    system.check()
    system.release(area)
    system.check()
    XCTAssertEqual(system.physical.count(.pageable), .zero)
  }

  /// Objects and ranges that come and go, with pages in all states, beside laundering and runs.
  func testThreadsThatMakeAndDestroyObjectsBesideRuns() throws {
    let seed = historySeed(53)
    let bed = try Bed(frames: 500, cores: 2)
    let system = bed.system
    let shared = try system.area(60)
    bed.run(
      { number, core in
        var random = SeededRandom(seed: seed &+ UInt64(number))
        for turn in 0..<60 as Range<UInt64> {
          do {
            let area = try system.area(1 + random.below(150))
            let other = try system.show(area.object, from: random.below(area.count), 1)
            let second = try system.show(shared.object, from: 10, 40)
            for page in 0..<area.count { try core.store(area[page] + ByteCount(UInt64(8)), page ^ turn) }
            try core.store(second[random.below(40)] + Self.place(number, 1), turn)
            for page in (0..<area.count).reversed() {
              let word = try core.load(area[page] + ByteCount(UInt64(8)))
              XCTAssertEqual(word, page ^ turn, "STRATA_SEED=\(seed), turn \(turn), page \(page)")
            }
            let word = try core.load(other[0] + ByteCount(UInt64(8)))
            XCTAssertEqual(word, other.offset ^ turn)
            system.hide(second)
            system.hide(other)
            system.release(area)
          } catch {
            XCTFail("\(error), STRATA_SEED=\(seed), turn \(turn)")
          }
        }
      },
      others: [
        {
          var random = SeededRandom(seed: seed &+ 99)
          while !bed.isOver {
            if random.oneIn(3) { system.paging.launder(.active, upTo: PageCount(64), referenced: .launder) }
            if case .success(let run) = system.ask(request(1 << random.below(7), aligned: 8)) {
              system.give(run)
            }
          }
        }
      ])
    system.check("STRATA_SEED=\(seed)")
    system.release(shared)
    system.check("STRATA_SEED=\(seed)")
    XCTAssertEqual(system.physical.count(.pageable), .zero)
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    XCTAssertEqual(system.paging.swap.figures.used, .zero)
    XCTAssertEqual(system.paging.figures.objects, 0)
    XCTAssertEqual(system.paging.figures.ranges, 0)
  }

  /// Three processors ask for runs at once, out of memory that two of them dirty.
  func testThreadsThatAskForRunsAtOnce() throws {
    let seed = historySeed(54)
    let bed = try Bed(frames: 600, cores: 3)
    let system = bed.system
    let area = try system.area(400)
    let granted = Atomic<Int>(0)
    bed.run(
      { number, core in
        var random = SeededRandom(seed: seed &+ UInt64(number))
        for turn in 0..<1500 as Range<UInt64> {
          for _ in 0..<20 {
            let page = random.below(area.count)
            do throws(PagingError) {
              try core.store(area[page] + Self.place(number, page), turn)
            } catch {
              XCTAssertEqual(error, .noMemory, "STRATA_SEED=\(seed)")
            }
          }
          let wanted = request(8 << random.below(4), aligned: 8)
          guard case .success(let run) = system.ask(wanted) else { continue }
          granted.add(1, ordering: .relaxed)
          let mark = UInt64(number) << 32 | turn
          for i in 0..<run.count.rawValue { system.words(run.first + PageCount(i))[5] = mark &+ i }
          system.checkGranted(run, wanted)
          for i in 0..<run.count.rawValue {
            XCTAssertEqual(
              system.words(run.first + PageCount(i))[5], mark &+ i, "two owners, STRATA_SEED=\(seed)")
          }
          system.give(run)
        }
      }, others: [])
    system.check("STRATA_SEED=\(seed)")
    XCTAssertEqual(system.physical.count(.contiguous), .zero)
    XCTAssertGreaterThan(granted.load(ordering: .relaxed), 100)
    system.release(area)
    system.check("STRATA_SEED=\(seed)")
  }
}
