// The history of pageable memory: faults, writes, wires, holds, laundering, contiguous requests, errors of the
// disk, interrupts at every point where one may come, on a machine whose pageable memory is several times its RAM.
//
// What each page must hold is kept beside (a word a page). A page is read through the software processor, and
// holds its stamp, or the read throws an error, which only a disk with troubles may cause: never wrong data. A
// page that was lost to such a disk (a write that it only pretended to do) is unreadable until its object is
// made anew. At the end everything is given up, and the machine is as it began, but for slots of swap that
// were retired.
//
// The sum takes in frames, stamps, outcomes and figures, so that kernel and host can be compared.

import ContiguousMemory
import CPlatform
import KernelMemory
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// A paging history while it runs: a handle, for interrupts come in the middle of it.
public struct PagingHistory {
  /// An object, the range that shows it, and now and then another that shows a part of it.
  struct Subject {
    var object: MemoryObject
    var address: VirtualAddress
    var second = VirtualAddress(0)
    var secondFirst: UInt64 = 0
    var secondCount: UInt64 = 0
  }
  /// What the history holds: pages wired or held, runs, frames of the kernel.
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
    /// Frames that interrupt handlers have.
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
    var hadTrouble = false
    /// The last pages that were written to: what a processor still remembers the way to.
    var recent: InlineArray<32, UInt64> = .init(repeating: 0)
    var recentCount = 0
    /// The subject that is being made anew, which interrupts leave alone.
    var inWork = -1
    /// Interrupts leave all subjects alone: before the first is made and when the last ones go.
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
  private static func rounded(_ size: Int) -> Int { (size + 63) & ~63 }
  private static func expectedSize(_ plan: PagingPlan) -> Int { Int(pages(plan)) * subjectCount * 8 }

  /// Bytes that a history needs beside the memory loaned, aligned to 64 and zeroed.
  public static func workspace(_ plan: PagingPlan) -> ByteCount {
    var size = rounded(MemoryLayout<State>.size) + rounded(MemoryLayout<PagingMachine>.size)
    size += rounded(MemoryLayout<cp_upcalls>.size) + rounded(MemoryLayout<FailureInjection>.size)
    size += rounded(Int(RamDisk.stateSize.rawValue)) + rounded(Int(TranslationBuffer.size.rawValue))
    size += rounded(Int(MemorySystem.workspaceSize(ranges: 1).rawValue)) + rounded(expectedSize(plan))
    size += rounded(subjectCount * MemoryLayout<Subject>.stride)
    size += rounded(heldCapacity * MemoryLayout<Held>.stride) + rounded(borrowedCapacity * 4)
    return ByteCount(size)
  }

  /// Runs a history to its end, or until something does not hold. `loaned` is `plan.loaned` bytes of memory that
  /// `outer` can reach, `workspace` zeroed memory; both are the caller's again afterwards.
  ///
  /// Throws when the instance did not come up.
  public static func run(
    _ plan: PagingPlan, on outer: Machine, loaned: UnsafeMutableRawPointer, workspace: UnsafeMutableRawPointer
  ) throws(AssemblyError) -> HistoryOutcome {
    var at = workspace
    func place(_ size: Int) -> UnsafeMutableRawPointer {
      defer { at += rounded(size) }
      return at
    }
    let state = place(MemoryLayout<State>.size).bindMemory(to: State.self, capacity: 1)
    let machine = place(MemoryLayout<PagingMachine>.size).bindMemory(to: PagingMachine.self, capacity: 1)
    let upcalls = place(MemoryLayout<cp_upcalls>.size).bindMemory(to: cp_upcalls.self, capacity: 1)
    let failures = place(MemoryLayout<FailureInjection>.size)
      .bindMemory(to: FailureInjection.self, capacity: 1)
    failures.initialize(to: FailureInjection())
    upcalls.initialize(to: PagingMachine.upcalls(machine))
    let inner = Machine(
      directMap: DirectMap(base: UInt64(UInt(bitPattern: loaned))), processorCount: 1,
      upcalls: UnsafePointer(upcalls), failures: failures)
    let disk = RamDisk.create(
      in: place(Int(RamDisk.stateSize.rawValue)), Name("ram"), machine: inner,
      over: RamDisk.Extent(loaned + Int(plan.memory.rawValue), plan.swap.pagesRoundedUp))
    let buffer = TranslationBuffer(place(Int(TranslationBuffer.size.rawValue)))
    machine.initialize(
      to: PagingMachine(outer: outer, disk: disk, buffer: buffer, random: SeededRandom(seed: plan.seed ^ 1)))
    let low = ByteCount.mebibytes(1)
    let system = try MemorySystem.assemble(
      BootRequest(
        machine: inner, workspace: place(Int(MemorySystem.workspaceSize(ranges: 1).rawValue)),
        firmwareRangeCount: 1),
      firmware: { _ in
        FirmwareRange(base: PhysicalAddress(low.rawValue), length: plan.memory - low, kind: .usable)
      })
    let expected = place(expectedSize(plan)).bindMemory(to: UInt64.self, capacity: expectedSize(plan) / 8)
    let subjects = place(subjectCount * MemoryLayout<Subject>.stride)
      .bindMemory(to: Subject.self, capacity: subjectCount)
    let held = place(heldCapacity * MemoryLayout<Held>.stride)
      .bindMemory(to: Held.self, capacity: heldCapacity)
    let borrowed = place(borrowedCapacity * 4).bindMemory(to: FrameNumber.self, capacity: borrowedCapacity)
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
  private func refuse(_ why: UInt8) {
    state.pointee.refused += 1
    fold(0xdead_0000 | UInt64(why))
  }
  private func keep(_ held: Held) {
    (state.pointee.held + state.pointee.heldCount).initialize(to: held)
    state.pointee.heldCount += 1
    state.pointee.granted += 1
  }
  private var hasRoom: Bool { state.pointee.heldCount < Self.heldCapacity - 1 }
  private func expected(_ subject: Int, _ page: UInt64) -> UnsafeMutablePointer<UInt64> {
    state.pointee.expected + (subject * Int(state.pointee.pagesEach) + Int(page))
  }
  private func subject(_ index: Int) -> UnsafeMutablePointer<Subject> { state.pointee.subjects + index }

  // MARK: The whole

  private func runAll() {
    let first = figures()
    for i in 0..<Self.subjectCount { make(i) }
    state.pointee.isClosing = false
    while state.pointee.done < state.pointee.plan.operations && state.pointee.broken == nil {
      operate()
      state.pointee.done += 1
      let every = state.pointee.plan.checkEvery
      if every != 0 && state.pointee.done % every == 0 { examine() }
    }
    examine()
    guard state.pointee.broken == nil else { return }
    // From here on nothing is to go wrong.
    calm()
    while state.pointee.heldCount > 0 { giveBack(0) }
    for i in 0..<Self.subjectCount { checkAll(i) }
    let paging = paging.figures
    fold(paging.faults)
    fold(paging.written)
    fold(paging.moved)
    fold(paging.reactivations)
    state.pointee.isClosing = true
    for i in 0..<Self.subjectCount { unmake(i) }
    for i in 0..<state.pointee.borrowedCount { free(state.pointee.borrowed[i]) }
    state.pointee.borrowedCount = 0
    examine()
    let last = figures()
    for i in 0..<first.count { require(first[i] == last[i], "the machine does not end as it began") }
    require(self.paging.swap.figures.used == .zero, "slots of swap are used that nobody has")
  }

  /// Frames by role that must come back. Tags and slabs may be kept for later; kmem keeps magazines for them, in
  /// frames of its own, until it is drained.
  private func figures() -> InlineArray<5, UInt64> {
    state.pointee.system.kmem.drain()
    return [
      physical.count(.pageable).rawValue, physical.count(.contiguous).rawValue,
      physical.count(.wired).rawValue, physical.count(.loaned).rawValue, physical.count(.kmem).rawValue,
    ]
  }

  private func examine() {
    calm()
    if let invariant = state.pointee.system.checkInvariants() { require(false, invariant) }
  }

  /// No trouble from here on.
  private func calm() {
    state.pointee.failures.pointee.countdown = -1
    state.pointee.machine.pointee.disk.faults = DeviceFaults()
  }

  private func stir() {
    guard state.pointee.plan.trouble == .some else { return }
    state.pointee.hadTrouble = true
    var trouble = DeviceFaults()
    trouble.seed = state.pointee.random.next()
    trouble.reordered = 300
    trouble.delayed = 200
    trouble.longestDelay = 8
    if oneIn(2) { trouble.failed = 60 }
    if oneIn(4) { trouble.torn = 20 }
    if oneIn(4) { trouble.corrupted = 20 }
    state.pointee.machine.pointee.disk.faults = trouble
  }

  // MARK: Objects

  private func make(_ index: Int) {
    state.pointee.inWork = index
    defer { state.pointee.inWork = -1 }
    let pages = PageCount(state.pointee.pagesEach)
    calm()
    do throws(PagingError) {
      let object = try paging.createObject(Name("history"), pages)
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
    for page in 0..<state.pointee.pagesEach { expected(index, page).pointee = 0 }
  }

  private func unmake(_ index: Int) {
    state.pointee.inWork = index
    defer { state.pointee.inWork = -1 }
    let subject = subject(index)
    endSecond(index)
    paging.unmap(subject.pointee.address, PageCount(state.pointee.pagesEach))
    paging.destroy(subject.pointee.object)
  }

  private func endSecond(_ index: Int) {
    let subject = subject(index)
    guard subject.pointee.secondCount > 0 else { return }
    paging.unmap(subject.pointee.second, PageCount(subject.pointee.secondCount))
    subject.pointee.secondCount = 0
  }

  /// Another range that shows a part, or the end of it.
  private func changeSecond() {
    let index = Int(below(UInt64(Self.subjectCount)))
    let subject = subject(index)
    if subject.pointee.secondCount > 0 {
      // What is wired through it would be a caller's bug.
      for i in 0..<state.pointee.heldCount where state.pointee.held[i].subject == index {
        if state.pointee.held[i].kind == .wire { return }
      }
      return endSecond(index)
    }
    let first = below(state.pointee.pagesEach)
    let count = 1 + below(min(32, state.pointee.pagesEach - first))
    do throws(PagingError) {
      subject.pointee.second = try paging.map(
        subject.pointee.object, from: PageCount(first), count: PageCount(count))
      (subject.pointee.secondFirst, subject.pointee.secondCount) = (first, count)
    } catch {
      refuse(error.rawValue)
    }
  }

  /// An object made anew, unless something of it is held.
  private func renew() {
    let index = Int(below(UInt64(Self.subjectCount)))
    for i in 0..<state.pointee.heldCount where state.pointee.held[i].subject == index {
      if state.pointee.held[i].kind == .wire || state.pointee.held[i].kind == .hold { return }
    }
    unmake(index)
    make(index)
  }

  // MARK: Pages

  /// Where a page is seen: by the whole range, or by the part that shows it too.
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
    look(index, page(), at: nil)
  }

  /// Mostly from a few pages that are used again and again.
  private func page() -> UInt64 {
    oneIn(3) ? below(state.pointee.pagesEach) : below(1 + state.pointee.pagesEach / 8)
  }

  private func look(_ index: Int, _ page: UInt64, at given: VirtualAddress?) {
    let address = given ?? address(index, page)
    do throws(PagingError) {
      // The first access may sleep, and an interrupt may write meanwhile; those after it don't.
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
      require(state.pointee.hadTrouble, "a page can't be read though the disk is sound")
    } else {
      require(error == .noMemory, "an access was refused")
    }
    refuse(error.rawValue)
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
      // The first store brings the page in and may sleep; what an interrupt wrote meanwhile is overwritten.
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
    for page in 0..<state.pointee.pagesEach { look(index, page, at: nil) }
  }

  // MARK: Operations

  private func operate() {
    if oneIn(64) { stir() }
    if oneIn(64) { calm() }
    if state.pointee.plan.trouble == .some && oneIn(16) {
      state.pointee.failures.pointee.countdown = Int64(below(40))
    }
    switch below(64) {
    case 0..<24: read()
    case 24..<44: write()
    case 44..<47: wire()
    case 47..<49: hold()
    case 49..<51: launder()
    case 51..<54: askForRun()
    case 54..<57: askForFrame()
    case 57: paging.runDaemon()
    case 58: changeSecond()
    case 59: if oneIn(8) { renew() }
    default: if state.pointee.heldCount > 0 { giveBack(Int(below(UInt64(state.pointee.heldCount)))) }
    }
    if state.pointee.heldCount > Self.heldCapacity / 2 && oneIn(2) {
      giveBack(Int(below(UInt64(state.pointee.heldCount))))
    }
  }

  private func wire() {
    guard hasRoom else { return }
    let index = Int(below(UInt64(Self.subjectCount)))
    let first = page()
    let count = 1 + below(min(8, state.pointee.pagesEach - first))
    let address = subject(index).pointee.address + PageCount(first)
    do throws(PagingError) {
      try paging.wire(address, PageCount(count), holes: .forbidden)
      keep(Held(kind: .wire, address: address, count: count, subject: index))
      // A wired page does not fault, and is where it is.
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
    guard hasRoom else { return }
    let index = Int(below(UInt64(Self.subjectCount)))
    let page = page()
    do throws(PagingError) {
      let frame = try paging.hold(address(index, page), .read)
      fold(UInt64(frame.rawValue))
      keep(Held(kind: .hold, count: page, frame: frame, subject: index))
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

  private func askForRun() {
    guard hasRoom else { return }
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
      keep(Held(kind: .run, count: count, frame: run.first, stamp: stamp, subject: -1))
    } catch {
      refuse(error.answer.rawValue)
      fold(UInt64(error.blocker.rawValue))
    }
  }

  private func askForFrame() {
    guard hasRoom else { return }
    do throws(PhysicalMemoryError) {
      let frame = try physical.allocate(Order(0), role: .wired)
      state.pointee.stamp += 1
      store(frame, state.pointee.stamp)
      keep(Held(kind: .frame, frame: frame, stamp: state.pointee.stamp, subject: -1))
    } catch {
      refuse(error.rawValue)
    }
  }

  private func store(_ frame: FrameNumber, _ value: UInt64) {
    state.pointee.system.machine.directMap.pointer(to: frame).storeBytes(of: value, as: UInt64.self)
  }
  private func load(_ frame: FrameNumber) -> UInt64 {
    state.pointee.system.machine.directMap.pointer(to: frame).load(as: UInt64.self)
  }
  private func free(_ frame: FrameNumber) { physical.free(FrameRun(first: frame, count: .one)) }

  private func giveBack(_ index: Int) {
    let held = state.pointee.held[index]
    state.pointee.heldCount -= 1
    state.pointee.held[index] = state.pointee.held[state.pointee.heldCount]
    switch held.kind {
    case .wire: paging.unwire(held.address, PageCount(held.count))
    case .hold:
      let stamp = expected(held.subject, held.count).pointee
      for place in 0..<4 as Range<UInt64> {
        let word = state.pointee.system.machine.directMap.pointer(to: held.frame)
          .load(fromByteOffset: Int(Self.offset(place).rawValue), as: UInt64.self)
        require(word == Self.word(stamp, place), "a page that is held was moved or given up")
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

  /// At a sleep or a shootdown: takes or gives back a frame as a handler does, or writes to a page that is in
  /// memory, as another processor would.
  private func handleInterrupt() {
    let random = state.pointee.machine
    switch random.pointee.random.below(4) {
    case 0 where state.pointee.borrowedCount < Self.borrowedCapacity:
      do throws(PhysicalMemoryError) {
        let frame = try physical.allocate(Order(0), role: .wired, priority: .interrupt)
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
      let page = isRecent ? choice & 0xffff_ffff : random.pointee.random.below(state.pointee.pagesEach)
      guard index != state.pointee.inWork, !state.pointee.isClosing else { return }
      let subject = subject(index).pointee
      // Whoever has it exclusive is below on this stack and can't be waited for.
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
