// The history of pageable memory: faults, writes, wires, holds, laundering, contiguous requests, errors of the
// disk, interrupts at every point where one may come, on a machine whose pageable memory is several times its RAM.
//
// A table has the expected stamp of each page. A page is read through the software processor, and holds its stamp, or
// the read throws an error, which only a disk with injected faults may cause: never wrong data. A page that such a
// disk has lost (a write that it reported but did not do) is unreadable until its object is created again. At the end
// everything is freed, and the machine is as at the beginning, except for slots of swap that were retired.
//
// The checksum covers frames, stamps, outcomes and counts, so that kernel and host can be compared.

import BlockDevices
import ContiguousMemory
import CPlatform
import KernelMemory
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// A paging history while it runs: a handle, as interrupts occur in the middle of it.
package struct PagingHistory {
  /// An object, the range that maps it, and now and then another that maps a part of it.
  struct Subject {
    var object: MemoryObject
    var address: VirtualAddress
    var second = VirtualAddress(0)
    var secondFirst: UInt64 = 0
    var secondCount: UInt64 = 0
  }
  /// A resource of the history: pages wired or held, a run, a frame of the kernel.
  struct Held {
    enum Kind: UInt8 { case wire, hold, run, frame }
    var kind: Kind
    var address = VirtualAddress(0)
    var count: UInt64 = 1
    var frame = FrameNumber.none
    var stamp: UInt64 = 0
    var subject = 0
  }
  struct State {
    let plan: PagingPlan
    let system: MemorySystem
    let processor: SoftwareProcessor
    let machine: PagingMachine.Place
    let failures: UnsafeMutablePointer<FailureInjection>
    let expected: UnsafeMutablePointer<UInt64>
    let subjects: UnsafeMutablePointer<Subject>
    let held: UnsafeMutablePointer<Held>
    /// Frames that interrupt handlers allocated.
    let borrowed: UnsafeMutablePointer<FrameNumber>
    let pagesEach: UInt64
    var random: SeededRandom
    var heldCount = 0
    var borrowedCount = 0
    var sum: UInt64 = 0xcbf2_9ce4_8422_2325
    var done: UInt64 = 0
    var granted: UInt64 = 0
    var refused: UInt64 = 0
    var stamp: UInt64 = 0
    var hadFaults = false
    /// The last pages that were written to, whose translations a processor still caches.
    var recent: InlineArray<32, UInt64> = .init(repeating: 0)
    var recentCount = 0
    /// The subject that is being created again, which interrupts do not use.
    var inCreation = -1
    /// Interrupts use no subject: before the first is created and while the last ones are destroyed.
    var isClosing = true
    var broken: StaticString?
  }
  let state: UnsafeMutablePointer<State>

  static var subjectCount: Int { 8 }
  static var heldCapacity: Int { 192 }
  static var borrowedCapacity: Int { 16 }

  /// Three times the memory in all.
  private static func pages(_ plan: PagingPlan) -> UInt64 {
    plan.memory.rawValue * 3 / Page.size / UInt64(subjectCount)
  }

  /// The offsets of the parts of a history's memory.
  private struct Parts {
    let state: Int
    let machine: Int
    let upcalls: Int
    let failures: Int
    let ramDisk: Int
    let disk: Int
    let buffer: Int
    let memory: Int
    let expected: Int
    let subjects: Int
    let held: Int
    let borrowed: Int
    let pageCount: Int
    let size: ByteCount

    init(_ plan: PagingPlan) {
      var layout = StorageLayout()
      pageCount = Int(pages(plan)) * subjectCount
      state = layout.add(State.self)
      machine = layout.add(PagingMachine.self)
      upcalls = layout.add(cp_upcalls.self)
      failures = layout.add(FailureInjection.self)
      ramDisk = layout.add(RamDisk.stateSize)
      disk = layout.add(FaultyDisk.stateSize)
      buffer = layout.add(TranslationBuffer.size)
      memory = layout.add(MemorySystem.workspaceSize(ranges: 1))
      expected = layout.add(UInt64.self, count: pageCount)
      subjects = layout.add(Subject.self, count: subjectCount)
      held = layout.add(Held.self, count: heldCapacity)
      borrowed = layout.add(FrameNumber.self, count: borrowedCapacity)
      size = layout.size
    }
  }

  /// Bytes that a history needs beside the memory loaned, aligned to a cache line and zeroed.
  package static func workspace(_ plan: PagingPlan) -> ByteCount { Parts(plan).size }

  /// Runs a history to its end, or until something does not hold. `loaned` is `plan.loaned` bytes of memory that
  /// `outer` can reach, `workspace` zeroed memory; both are the caller's again afterwards.
  ///
  /// Throws when the instance did not come up.
  package static func run(
    _ plan: PagingPlan, on outer: Machine, loaned: UnsafeMutableRawPointer, workspace: UnsafeMutableRawPointer
  ) throws(AssemblyError) -> HistoryOutcome {
    let parts = Parts(plan)
    let state = workspace.part(State.self, at: parts.state)
    let machine = workspace.part(PagingMachine.self, at: parts.machine)
    let upcalls = workspace.part(cp_upcalls.self, at: parts.upcalls)
    let failures = workspace.part(FailureInjection.self, at: parts.failures)
    failures.initialize(to: FailureInjection())
    upcalls.initialize(to: PagingMachine.upcalls(machine))
    let inner = Machine(
      directMap: DirectMap(base: UInt64(UInt(bitPattern: loaned))), processorCount: 1,
      upcalls: UnsafePointer(upcalls), failures: failures)
    let ramDisk = RamDisk.create(
      in: workspace + parts.ramDisk, ShortName("ram"), machine: inner,
      over: RamDisk.Extent(loaned + Int(plan.memory.rawValue), plan.swap.pagesRoundedUp))
    let disk = FaultyDisk.create(in: workspace + parts.disk, over: ramDisk, machine: inner)
    let buffer = TranslationBuffer(workspace + parts.buffer)
    machine.initialize(
      to: PagingMachine(outer: outer, disk: disk, buffer: buffer, random: SeededRandom(seed: plan.seed ^ 1)))
    let low = ByteCount.mebibytes(1)
    let system = try MemorySystem.assemble(
      BootRequest(
        machine: inner, workspace: workspace + parts.memory,
        firmwareRangeCount: 1),
      firmware: { _ in
        FirmwareRange(base: PhysicalAddress(low.rawValue), length: plan.memory - low, kind: .usable)
      })
    let expected = workspace.part(UInt64.self, at: parts.expected, count: parts.pageCount)
    let subjects = workspace.part(Subject.self, at: parts.subjects, count: subjectCount)
    let held = workspace.part(Held.self, at: parts.held, count: heldCapacity)
    let borrowed = workspace.part(FrameNumber.self, at: parts.borrowed, count: borrowedCapacity)
    do throws(PagingError) {
      try system.paging.attachSwap(disk.device)
    } catch {
      throw .tooSmall
    }
    state.initialize(
      to: State(
        plan: plan, system: system,
        processor: SoftwareProcessor(
          directMap: inner.directMap, tables: system.pageTables, paging: system.paging, buffer: buffer),
        machine: machine, failures: failures, expected: expected, subjects: subjects, held: held,
        borrowed: borrowed, pagesEach: pages(plan), random: SeededRandom(seed: plan.seed)))
    let history = PagingHistory(state: state)
    machine.pointee.interruptContext = UnsafeMutableRawPointer(state)
    machine.pointee.interrupt = { context in
      PagingHistory(state: context.assumingMemoryBound(to: State.self)).handleInterrupt()
    }
    history.runAll()
    machine.pointee.interrupt = nil
    return HistoryOutcome(
      checksum: state.pointee.sum, operations: state.pointee.done, granted: state.pointee.granted,
      refused: state.pointee.refused, broken: state.pointee.broken)
  }

  // MARK: Help

  var paging: PagedMemory { state.pointee.system.paging }
  var physical: FrameAllocator { state.pointee.system.physical }
  var contiguous: ContiguousAllocator { state.pointee.system.contiguous }
  var processor: SoftwareProcessor { state.pointee.processor }
  private var heldCount: Int { state.pointee.heldCount }
  private var pagesEach: UInt64 { state.pointee.pagesEach }
  private func below(_ limit: UInt64) -> UInt64 { state.pointee.random.below(limit) }
  private func oneIn(_ n: UInt64) -> Bool { state.pointee.random.oneIn(n) }

  func fold(_ value: UInt64) {
    var sum = (state.pointee.sum ^ value) &* 0x0000_0100_0000_01b3
    sum ^= sum >> 29
    state.pointee.sum = sum
  }
  func require(_ holds: Bool, _ invariant: StaticString) {
    if !holds && state.pointee.broken == nil { state.pointee.broken = invariant }
  }
  private func countRefusal(_ why: UInt8) {
    state.pointee.refused += 1
    fold(0xdead_0000 | UInt64(why))
  }
  private func hold(_ held: Held) {
    (state.pointee.held + heldCount).initialize(to: held)
    state.pointee.heldCount += 1
    state.pointee.granted += 1
  }
  private var hasSpace: Bool { heldCount < Self.heldCapacity - 1 }
  private func expected(_ subject: Int, _ page: UInt64) -> UnsafeMutablePointer<UInt64> {
    state.pointee.expected + (subject * Int(pagesEach) + Int(page))
  }
  private func subject(_ index: Int) -> UnsafeMutablePointer<Subject> { state.pointee.subjects + index }

  // MARK: The whole

  private func runAll() {
    let first = frameCounts()
    for i in 0..<Self.subjectCount { create(i) }
    state.pointee.isClosing = false
    while state.pointee.done < state.pointee.plan.operations && state.pointee.broken == nil {
      operate()
      state.pointee.done += 1
      let every = state.pointee.plan.checkEvery
      if every != 0 && state.pointee.done % every == 0 { checkInvariants() }
    }
    checkInvariants()
    guard state.pointee.broken == nil else { return }
    // From here on no fault is injected.
    stopFaults()
    while heldCount > 0 { free(0) }
    for i in 0..<Self.subjectCount { checkAll(i) }
    let paging = paging.figures
    fold(paging.faults)
    fold(paging.written)
    fold(paging.moved)
    fold(paging.reactivations)
    state.pointee.isClosing = true
    for i in 0..<Self.subjectCount { destroy(i) }
    for i in 0..<state.pointee.borrowedCount { free(state.pointee.borrowed[i]) }
    state.pointee.borrowedCount = 0
    checkInvariants()
    let last = frameCounts()
    for i in 0..<first.count { require(first[i] == last[i], "the machine does not end as it began") }
    require(self.paging.swap.figures.used == .zero, "slots of swap are used without an owner")
  }

  /// Frames by role that must be freed. Tags and slabs may be kept for later; kmem keeps magazines for them, in
  /// frames of its own, until it is drained.
  private func frameCounts() -> InlineArray<5, UInt64> {
    state.pointee.system.kmem.drain()
    return [
      physical.count(.pageable).rawValue, physical.count(.contiguous).rawValue,
      physical.count(.wired).rawValue, physical.count(.loaned).rawValue, physical.count(.kmem).rawValue,
    ]
  }

  private func checkInvariants() {
    stopFaults()
    if let invariant = state.pointee.system.checkInvariants() { require(false, invariant) }
  }

  /// Ends the injection of faults.
  private func stopFaults() {
    state.pointee.failures.pointee.countdown = -1
    state.pointee.machine.pointee.disk.faults = DeviceFaults()
  }

  private func injectFaults() {
    guard state.pointee.plan.faults == .some else { return }
    state.pointee.hadFaults = true
    var faults = DeviceFaults()
    faults.seed = state.pointee.random.next()
    faults.reordered = 300
    faults.delayed = 200
    faults.longestDelay = 8
    if oneIn(2) { faults.failed = 60 }
    if oneIn(4) { faults.torn = 20 }
    if oneIn(4) { faults.corrupted = 20 }
    state.pointee.machine.pointee.disk.faults = faults
  }

  // MARK: Objects

  private func create(_ index: Int) {
    state.pointee.inCreation = index
    defer { state.pointee.inCreation = -1 }
    let pages = PageCount(pagesEach)
    stopFaults()
    do throws(PagingError) {
      let object = try paging.createObject(ShortName("history"), pages)
      do throws(PagingError) {
        let address = try paging.map(object, count: pages)
        (state.pointee.subjects + index).initialize(to: Subject(object: object, address: address))
        fold(address.rawValue)
      } catch {
        paging.destroy(object)
        throw error
      }
    } catch {
      require(false, "no memory for an object, its tables and a range")
    }
    for page in 0..<pagesEach { expected(index, page).pointee = 0 }
  }

  private func destroy(_ index: Int) {
    state.pointee.inCreation = index
    defer { state.pointee.inCreation = -1 }
    let subject = subject(index)
    endSecond(index)
    paging.unmap(subject.pointee.address, PageCount(pagesEach))
    paging.destroy(subject.pointee.object)
  }

  private func endSecond(_ index: Int) {
    let subject = subject(index)
    guard subject.pointee.secondCount > 0 else { return }
    paging.unmap(subject.pointee.second, PageCount(subject.pointee.secondCount))
    subject.pointee.secondCount = 0
  }

  /// Maps a part of an object by a second range, or unmaps that range.
  private func changeSecond() {
    let index = Int(below(UInt64(Self.subjectCount)))
    let subject = subject(index)
    if subject.pointee.secondCount > 0 {
      // To unmap wired pages would be a caller's bug.
      for i in 0..<heldCount where state.pointee.held[i].subject == index {
        if state.pointee.held[i].kind == .wire { return }
      }
      return endSecond(index)
    }
    let first = below(pagesEach)
    let count = 1 + below(min(32, pagesEach - first))
    do throws(PagingError) {
      subject.pointee.second = try paging.map(
        subject.pointee.object, from: PageCount(first), count: PageCount(count))
      (subject.pointee.secondFirst, subject.pointee.secondCount) = (first, count)
    } catch {
      countRefusal(error.rawValue)
    }
  }

  /// Destroys an object and creates it again, unless a page of it is wired or held.
  private func renew() {
    let index = Int(below(UInt64(Self.subjectCount)))
    for i in 0..<heldCount where state.pointee.held[i].subject == index {
      if state.pointee.held[i].kind == .wire || state.pointee.held[i].kind == .hold { return }
    }
    destroy(index)
    create(index)
  }

  // MARK: Pages

  /// An address of a page: in the whole range, or in the second range if it maps the page too.
  private func address(_ index: Int, _ page: UInt64) -> VirtualAddress {
    let subject = subject(index).pointee
    if subject.secondCount > 0, page >= subject.secondFirst, page - subject.secondFirst < subject.secondCount,
      oneIn(2)
    {
      return subject.second + PageCount(page - subject.secondFirst)
    }
    return subject.address + PageCount(page)
  }

  private static func word(_ stamp: UInt64, _ place: UInt64) -> UInt64 {
    stamp == 0 ? 0 : stamp ^ (place &+ 1) &* 0x9e37_79b9_7f4a_7c15
  }
  private static func offset(_ place: UInt64) -> ByteCount { ByteCount(place * 1364 & ~7) }

  private func read() {
    let index = Int(below(UInt64(Self.subjectCount)))
    check(index, page(), at: nil)
  }

  /// Mostly from a few pages that are used again and again.
  private func page() -> UInt64 {
    oneIn(3) ? below(pagesEach) : below(1 + pagesEach / 8)
  }

  private func check(_ index: Int, _ page: UInt64, at given: VirtualAddress?) {
    let address = given ?? address(index, page)
    do throws(PagingError) {
      // The first access may sleep, and an interrupt may write while it does; those after it don't.
      _ = try processor.load(address)
      let stamp = expected(index, page).pointee
      for place in 0..<4 as Range<UInt64> {
        let word = try processor.load(address + Self.offset(place))
        require(word == Self.word(stamp, place), "a page does not hold its stamp")
      }
      fold(stamp)
    } catch {
      fail(error)
    }
  }

  private func fail(_ error: PagingError) {
    if error == .inputOutput || error == .corrupt {
      require(state.pointee.hadFaults, "a page can't be read though the disk is sound")
    } else {
      require(error == .noMemory, "an access was refused")
    }
    countRefusal(error.rawValue)
  }

  private func write() {
    let index = Int(below(UInt64(Self.subjectCount)))
    write(index, page())
  }

  private func write(_ index: Int, _ page: UInt64) {
    let address = address(index, page)
    do throws(PagingError) {
      state.pointee.stamp += 1
      let stamp = state.pointee.stamp &* 0xbf58_476d_1ce4_e5b9 | 1
      // The first store pages in and may sleep; words that an interrupt writes while it does are overwritten.
      for place in 0..<4 as Range<UInt64> {
        try processor.store(address + Self.offset(place), Self.word(stamp, place))
      }
      expected(index, page).pointee = stamp
      state.pointee.granted += 1
      state.pointee.recent[state.pointee.recentCount % 32] = UInt64(index) << 32 | page
      state.pointee.recentCount += 1
    } catch {
      fail(error)
    }
  }

  private func checkAll(_ index: Int) {
    for page in 0..<pagesEach { check(index, page, at: nil) }
  }

  // MARK: Operations

  private func operate() {
    if oneIn(64) { injectFaults() }
    if oneIn(64) { stopFaults() }
    if state.pointee.plan.faults == .some && oneIn(16) {
      state.pointee.failures.pointee.countdown = Int64(below(40))
    }
    switch below(64) {
    case 0..<24: read()
    case 24..<44: write()
    case 44..<47: wire()
    case 47..<49: hold()
    case 49..<51: launder()
    case 51..<54: requestRun()
    case 54..<57: requestFrame()
    case 57: paging.runDaemon()
    case 58: changeSecond()
    case 59: if oneIn(8) { renew() }
    default: if heldCount > 0 { free(Int(below(UInt64(heldCount)))) }
    }
    if heldCount > Self.heldCapacity / 2 && oneIn(2) {
      free(Int(below(UInt64(heldCount))))
    }
  }

  private func wire() {
    guard hasSpace else { return }
    let index = Int(below(UInt64(Self.subjectCount)))
    let first = page()
    let count = 1 + below(min(8, pagesEach - first))
    let address = subject(index).pointee.address + PageCount(first)
    do throws(PagingError) {
      try paging.wire(address, PageCount(count), holes: .forbidden)
      hold(Held(kind: .wire, address: address, count: count, subject: index))
      // A wired page does not fault, and keeps its frame.
      for i in 0..<count {
        let page = address + PageCount(i)
        require(
          state.pointee.system.pageTables.mapping(at: page)?.isWritable == true,
          "a wired page is not mapped, or not for writing")
      }
    } catch {
      fail(error)
    }
  }

  private func hold() {
    guard hasSpace else { return }
    let index = Int(below(UInt64(Self.subjectCount)))
    let page = page()
    do throws(PagingError) {
      let frame = try paging.hold(address(index, page), .read)
      fold(UInt64(frame.rawValue))
      hold(Held(kind: .hold, count: page, frame: frame, subject: index))
    } catch {
      fail(error)
    }
  }

  private func launder() {
    let queue = PageQueue(rawValue: UInt8(below(3))) ?? .laundry
    let outcome = paging.launder(
      queue, upTo: PageCount(1 + below(100)), referenced: oneIn(2) ? .skip : .launder)
    fold(outcome.written.rawValue << 20 | outcome.freed.rawValue)
    if oneIn(8) { paging.retryUnswappable() }
  }

  private func requestRun() {
    guard hasSpace else { return }
    let count = 1 + below(1 << below(9))
    var constraints = RunConstraints()
    if oneIn(2) { constraints.alignment = Alignment(Page.size << below(6)) ?? .page }
    if oneIn(4) { constraints.low = PhysicalAddress(below(512) << Page.shift) }
    if oneIn(4) { constraints.high = PhysicalAddress((700 + below(900)) << Page.shift) }
    if oneIn(8) { constraints.boundary = Alignment(Page.size << (5 + below(5))) }
    var request = ContiguousRequest(PageCount(count), where: constraints)
    if oneIn(6) { request.waitPolicy = .forbidden }
    if oneIn(6) { request.passes = ContiguousPass(rawValue: UInt8(1 + below(4))) ?? .launderActive }
    if oneIn(8) {
      request.budget = ContiguousBudget(moved: PageCount(below(64)), written: PageCount(below(64)))
    }
    let before = contiguous.movedCount + contiguous.writtenCount
    do throws(ContiguousFailure) {
      let run = try contiguous.allocContig(request)
      let cost = contiguous.movedCount + contiguous.writtenCount - before
      require(
        cost.rawValue <= 2 * count, "a contiguous request did more than its runs have pages")
      state.pointee.stamp += 1
      let stamp = state.pointee.stamp &* 0x94d0_49bb_1331_11eb | 1
      for i in 0..<count { store(run.first + PageCount(i), stamp &+ i) }
      fold(UInt64(run.first.rawValue) << 20 | count)
      hold(Held(kind: .run, count: count, frame: run.first, stamp: stamp, subject: -1))
    } catch {
      countRefusal(error.answer.rawValue)
      fold(UInt64(error.blocker.rawValue))
    }
  }

  private func requestFrame() {
    guard hasSpace else { return }
    do throws(PhysicalMemoryError) {
      let frame = try physical.allocate(BlockOrder(0), role: .wired, for: FrameOwner("a paging history"))
      state.pointee.stamp += 1
      store(frame, state.pointee.stamp)
      hold(Held(kind: .frame, frame: frame, stamp: state.pointee.stamp, subject: -1))
    } catch {
      countRefusal(error.rawValue)
    }
  }

  private func store(_ frame: FrameNumber, _ value: UInt64) {
    state.pointee.system.machine.directMap.pointer(to: frame).storeBytes(of: value, as: UInt64.self)
  }
  private func load(_ frame: FrameNumber) -> UInt64 {
    state.pointee.system.machine.directMap.pointer(to: frame).load(as: UInt64.self)
  }
  private func free(_ frame: FrameNumber) { physical.free(FrameRun(first: frame, count: .one)) }

  private func free(_ index: Int) {
    let held = state.pointee.held[index]
    state.pointee.heldCount -= 1
    state.pointee.held[index] = state.pointee.held[heldCount]
    switch held.kind {
    case .wire: paging.unwire(held.address, PageCount(held.count))
    case .hold:
      let stamp = expected(held.subject, held.count).pointee
      for place in 0..<4 as Range<UInt64> {
        let word = state.pointee.system.machine.directMap.pointer(to: held.frame)
          .load(fromByteOffset: Int(Self.offset(place).rawValue), as: UInt64.self)
        require(word == Self.word(stamp, place), "a page that is held was moved or reclaimed")
      }
      paging.unhold(held.frame)
    case .run:
      for i in 0..<held.count {
        require(load(held.frame + PageCount(i)) == held.stamp &+ i, "a run has a second owner")
      }
      contiguous.releaseContig(FrameRun(first: held.frame, count: PageCount(held.count)))
    case .frame:
      require(load(held.frame) == held.stamp, "a frame has a second owner")
      free(held.frame)
    }
  }

  // MARK: Interrupts

  /// Runs at a sleep or a shootdown: allocates or frees a frame as a handler does, or writes to a page that is in
  /// memory, as another processor would.
  private func handleInterrupt() {
    let random = state.pointee.machine
    switch random.pointee.random.below(4) {
    case 0 where state.pointee.borrowedCount < Self.borrowedCapacity:
      do throws(PhysicalMemoryError) {
        let frame = try physical.allocate(
          BlockOrder(0), role: .wired, priority: .interrupt, for: FrameOwner("a paging history"))
        state.pointee.borrowed[state.pointee.borrowedCount] = frame
        state.pointee.borrowedCount += 1
      } catch {
        return
      }
    case 1 where state.pointee.borrowedCount > 0:
      state.pointee.borrowedCount -= 1
      free(state.pointee.borrowed[state.pointee.borrowedCount])
    default:
      let isRecent = random.pointee.random.oneIn(2)
      let choice = state.pointee.recent[Int(random.pointee.random.below(32))]
      let index =
        isRecent ? Int(choice >> 32) : Int(random.pointee.random.below(UInt64(Self.subjectCount)))
      let page = isRecent ? choice & 0xffff_ffff : random.pointee.random.below(pagesEach)
      guard index != state.pointee.inCreation, !state.pointee.isClosing else { return }
      let subject = subject(index).pointee
      // The thread that has it xbusy is below on this stack, so the handler can't wait for it.
      let what = paging.describe(subject.object, page: PageCount(page).rawValue)
      guard what.place == .resident, !what.busyWord.isXbusy else { return }
      do throws(PagingError) {
        state.pointee.stamp += 1
        let stamp = state.pointee.stamp &* 0xbf58_476d_1ce4_e5b9 | 1
        let address = subject.address + PageCount(page)
        for place in 0..<4 as Range<UInt64> {
          try processor.store(address + Self.offset(place), Self.word(stamp, place))
        }
        expected(index, page).pointee = stamp
      } catch {
        require(false, "a page in memory can't be written to")
      }
    }
  }
}
