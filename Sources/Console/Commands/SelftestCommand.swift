// selftest: checks the running system. Each test leaves memory unchanged, and checks that it has.

import Kmem
import KernelMemory
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var selftest: CommandDescription {
    CommandDescription(
      name: "selftest", usage: "selftest [NAME] [SECONDS]",
      about: """
        Checks the invariants of each layer, and runs the self-tests: among them
        the same seeded history of operations that the tests run on the host.
        smp uses all layers at once on all processors, for 10 seconds or SECONDS.
        """,
      example: "selftest history", question: .trial,
      completion: .names(of: .selfTests))
  }
}

extension Shell {
  enum SelfTest: UInt8, NamedCases {
    case invariants, protection, frames, objects, space, history, paging, smp

    static var last: Self { .smp }

    var name: StaticString {
      switch self {
      case .invariants: "invariants"
      case .protection: "protection"
      case .frames: "frames"
      case .objects: "objects"
      case .space: "space"
      case .history: "history"
      case .paging: "paging"
      case .smp: "smp"
      }
    }

    var about: StaticString {
      switch self {
      case .invariants: "the invariants of every layer"
      case .protection: "no frame can be written and executed"
      case .frames: "blocks and runs are allocated, freed and joined"
      case .objects: "objects of all sizes don't overlap"
      case .space: "address, frames and mapping come and go together"
      case .history: "seeded histories, as the tests run them on the host"
      case .paging: "a seeded history of pages on three times the memory"
      case .smp: "all layers at once, on all processors"
      }
    }

    /// Loaned memory that the test needs, in one run.
    var loaned: ByteCount? {
      switch self {
      case .history: SeededHistory.memory
      case .paging: PagingPlan.standard.loaned
      case .invariants, .protection, .frames, .objects, .space, .smp: nil
      }
    }
  }

  func selftest(_ arguments: Arguments) throws(CommandError) {
    let word = arguments.next()
    let seconds = try seconds(word, arguments)
    try arguments.end()
    var only: SelfTest?
    if let word {
      only = SelfTest.named(word.bytes)
      if only == nil {
        var names: Line = "no such test:"
        SelfTest.forEach { names.append(line: " \($0.name)") }
        throw refuse(word, names)
      }
    }
    var (failed, passed, leftOut, asked) = (UInt64(0), UInt64(0), UInt64(0), UInt64(0))
    var isCutOff = false
    for value in 0..<SelfTest.count {
      guard let test = SelfTest(rawValue: UInt8(value)), only == nil || only == test else { continue }
      asked += 1
      if hasStopped || shouldStop { continue }
      let outcome = run(test, seconds)
      isCutOff = hasStopped
      switch outcome {
      case .passed: passed += 1
      case .broken: failed += 1
      case .notBegun: leftOut += 1
      }
      // The test that Ctrl-C ended has an outcome too.
      tellDone { report(test, outcome) }
    }
    var sum = Line()
    if leftOut > 0 { sum.append(line: "\(count: leftOut) left out, ") }
    sum.append(line: "\(count: passed) passed, \(count: failed) failed")
    let done = passed + failed + leftOut
    var stopped: Line = "Stopped. \(count: done) of \(count: asked, "test") ran"
    stopped.append(isCutOff ? ", the last not to its end." : ".")
    if isStopped(stopped) {
      tellDone { print(sum) }
    } else {
      print(sum)
    }
    if failed > 0 { throw .failed }
    // Nothing was tested.
    if passed == 0 { throw .unfit }
  }

  /// The end of a self-test.
  enum TestOutcome {
    case passed
    /// The invariant that does not hold.
    case broken(StaticString)
    /// Why the test could not begin: this machine lacks something. Nothing is broken.
    case notBegun(Line)

    init(_ trouble: StaticString?) {
      if let trouble { self = .broken(trouble) } else { self = .passed }
    }
  }

  private func run(_ test: SelfTest, _ seconds: UInt64) -> TestOutcome {
    if let loaned = test.loaned, !canLoan(loaned) {
      return .notBegun(isJSON ? "too little memory" : "no run of \(loaned) can be loaned here")
    }
    if test == .smp, let reason = whyNoStress { return .notBegun(Line(reason)) }
    return outcome(of: test, seconds)
  }

  private func report(_ test: SelfTest, _ outcome: TestOutcome) {
    row("selftest") { row in
      row.field("name", text: Line(test.name))
      switch outcome {
      case .passed:
        row.field("passed", truth: .yes)
        row.none("broken")
        row.none("left_out")
      case .broken(let what):
        row.field("passed", truth: .no)
        row.field("broken", text: Line(what))
        row.none("left_out")
      case .notBegun(let why):
        row.none("passed")
        row.none("broken")
        row.field("left_out", text: why)
      }
    }
    let name: Line = "\(left: Line(test.name), 12)"
    switch outcome {
    case .passed: print("\(name)  passed  \(test.about)")
    case .broken(let what):
      print("\(name)  FAILED  \(test.about)")
      print("! \(what)")
    case .notBegun(let why): print("\(name)  left out: \(why); could not begin")
    }
  }

  private func outcome(of test: SelfTest, _ seconds: UInt64) -> TestOutcome {
    switch test {
    case .invariants: return TestOutcome(memory.checkInvariants())
    case .protection:
      return TestOutcome(
        memory.pageTables.proveWriteXorExecute() == nil ? nil : "a frame can be written and executed")
    case .frames: return testFrames()
    case .objects: return testObjects()
    case .space: return testSpace()
    case .history: return testHistories()
    case .paging: return testPaging()
    case .smp: return testProcessors(seconds)
    }
  }

  /// Whether a run of that much memory can be loaned to a second instance.
  private func canLoan(_ memory: ByteCount) -> Bool {
    guard let run = physical.longestFreeRun() else { return false }
    return run.count >= memory.pagesRoundedUp
  }

  /// Runs `body` with memory that this instance loans, and with zeroed storage for the records of a history; `body`
  /// describes what is wrong.
  private func loaning(
    _ size: ByteCount, room roomSize: ByteCount,
    _ body: (UnsafeMutableRawPointer, UnsafeMutableRawPointer) throws(AssemblyError) -> StaticString?
  ) -> TestOutcome {
    let before = physical.freeCount
    let map = memory.machine.directMap
    let loaned: FrameRun
    let room: FrameRun
    do throws(PhysicalMemoryError) {
      // Aligned, so that the page tables of a second instance use the same frames everywhere.
      loaned = try physical.allocateUnlogged(
        run: size.pagesRoundedUp,
        where: RunConstraints(alignment: Alignment(2 << 20).unsafelyUnwrapped, boundary: Alignment(1 << 30)),
        role: .loaned, for: FrameOwner("self-test, a second instance"))
    } catch {
      return .notBegun("no run of memory can be loaned here")
    }
    do throws(PhysicalMemoryError) {
      room = try physical.allocate(
        run: roomSize.pagesRoundedUp, role: .wired, for: FrameOwner("self-test, records of a history"))
    } catch {
      physical.free(loaned)
      return .notBegun("no memory for the records of a history")
    }
    var trouble: StaticString?
    let workspace = map.pointer(to: room.first)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: Int(room.count.bytes.rawValue))
    // The memory still holds old contents, so a disk in it that loses a write shows them.
    map.pointer(to: loaned.first).initializeMemory(
      as: UInt64.self, repeating: 0, count: Int(loaned.count.rawValue) * 512)
    do throws(AssemblyError) {
      trouble = try body(map.pointer(to: loaned.first), workspace)
    } catch {
      trouble = "the second instance did not come up"
    }
    physical.free(room)
    physical.free(loaned)
    if trouble == nil && physical.freeCount != before { trouble = "loaned frames did not come back" }
    return TestOutcome(trouble)
  }

  /// Runs each layer's standard history on a second instance over memory that this one loans. The checksums equal
  /// those of the same code on the host.
  private func testHistories() -> TestOutcome {
    let spaceSize = (MemorySystem.workspaceSize(ranges: 1).rawValue + 63) & ~63
    return loaning(SeededHistory.memory, room: ByteCount(spaceSize) + SeededHistory.workspace) {
      (loaned, workspace) throws(AssemblyError) in
      var trouble: StaticString?
      let base = UInt64(UInt(bitPattern: loaned))
      let system = try SeededHistory.assemble(
        memory.machine.loaning(DirectMap(base: base), processors: 1), workspace: workspace)
      for number in 0..<HistoryKind.count {
        guard let kind = HistoryKind(rawValue: UInt8(number)), !shouldStop else { break }
        let outcome = SeededHistory.run(.standard(kind), on: system, workspace: workspace + Int(spaceSize))
        report(kind.description, outcome)
        if let broken = outcome.broken { trouble = broken }
      }
      return trouble
    }
  }

  /// The same for pageable memory, on a machine of its own with a disk that injects faults.
  private func testPaging() -> TestOutcome {
    let plan = PagingPlan.standard
    return loaning(plan.loaned, room: PagingHistory.workspace(plan)) {
      (loaned, workspace) throws(AssemblyError) in
      let outcome = try PagingHistory.run(plan, on: memory.machine, loaned: loaned, workspace: workspace)
      report("paging", outcome)
      return outcome.broken
    }
  }

  private func report(_ name: StaticString, _ outcome: HistoryOutcome) {
    row("history") { row in
      row.field("name", text: Line(name))
      row.field("checksum", text: "\(hex: outcome.checksum, digits: 16)")
      row.field("operations", outcome.operations)
      row.field("granted", outcome.granted)
      row.field("refused", outcome.refused)
    }
    print(
      "  \(left: Line(name), 14)\(hex: outcome.checksum, digits: 16)  \(count: outcome.operations) operations, \(count: outcome.refused) refused"
    )
  }

  private func testFrames() -> TestOutcome {
    let before = physical.freeCount
    let longest = physical.longestFreeRun()
    var blocks = InlineArray<10, FrameNumber>(repeating: .none)
    for order in 0...9 {
      do throws(PhysicalMemoryError) {
        blocks[order] = try physical.allocate(
          BlockOrder(UInt8(order)), role: .wired, for: FrameOwner("self-test, a block"))
      } catch {
        // A refused block is an answer, not a fault.
        continue
      }
    }
    var trouble: StaticString?
    var hasBlock = false
    for a in 0...9 where blocks[a] != .none {
      hasBlock = true
      if blocks[a].rawValue & (1 << UInt32(a) - 1) != 0 { trouble = "a block is not aligned to its size" }
      for b in 0...9 where b != a && blocks[b] != .none {
        let (first, end) = (blocks[a].rawValue, blocks[a].rawValue + 1 << UInt32(a))
        if blocks[b].rawValue >= first && blocks[b].rawValue < end { trouble = "two blocks overlap" }
      }
    }
    for order in stride(from: 9, through: 0, by: -1) where blocks[order] != .none {
      physical.free(blocks[order], BlockOrder(UInt8(order)))
    }
    if !hasBlock { return .notBegun("no block of any size is free") }
    if let trouble { return .broken(trouble) }
    if physical.freeCount != before { return .broken("frames did not come back") }
    if physical.longestFreeRun()?.count != longest?.count { return .broken("blocks did not join again") }
    return TestOutcome(physical.checkInvariants())
  }

  private func testObjects() -> TestOutcome {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("selftest"))
    kmem.drain()
    var held = InlineArray<64, UInt>(repeating: 0)
    var trouble: StaticString?
    // Sizes from 8 bytes to 4 KiB; each object is filled with its own number and must keep it.
    func size(_ i: Int) -> ByteCount { ByteCount(8 + i * 64 + i * i % 7) }
    for i in 0..<64 {
      guard let object = kmem.alloc(size(i), type: type) else { break }
      held[i] = UInt(bitPattern: object)
      object.initializeMemory(as: UInt8.self, repeating: UInt8(i + 1), count: Int(size(i).rawValue))
    }
    for i in 0..<64 {
      guard let object = UnsafeMutablePointer<UInt8>(bitPattern: held[i]) else { continue }
      let count = Int(size(i).rawValue)
      if object[0] != UInt8(i + 1) || object[count - 1] != UInt8(i + 1) { trouble = "two objects overlap" }
      kmem.free(UnsafeMutableRawPointer(object), size: size(i), type: type)
    }
    kmem.drain()
    let figures = kmem.describe(type)
    if held[0] == 0 { return .notBegun("no memory for an object") }
    if trouble == nil && figures.inUse != 0 { trouble = "objects did not come back" }
    return TestOutcome(trouble ?? kmem.checkInvariants())
  }

  private func testSpace() -> TestOutcome {
    let space = memory.space
    let pages = PageCount(UInt64(16))
    let address: VirtualAddress
    do throws(KernelSpaceError) {
      address = try space.allocateWired(
        pages, from: .kernel, role: .wired, contents: .zero,
        for: FrameOwner("self-test, a range"))
    } catch {
      return .notBegun("no memory for a range of 16 pages")
    }
    var trouble: StaticString?
    for page in 0..<16 as Range<UInt64> {
      guard let translation = memory.pageTables.translate(address + PageCount(page)) else {
        trouble = "a page of a wired range is not mapped"
        continue
      }
      if physical.whatIs(translation.physical.frame).role != .wired {
        trouble = "a mapped frame has another role"
      }
      let word = memory.machine.directMap.pointer(to: translation.physical).load(as: UInt64.self)
      if word != 0 { trouble = "a page that was to be zero is not" }
    }
    space.freeWired(address, pages)
    if memory.pageTables.translate(address) != nil { trouble = "a freed page is still mapped" }
    return TestOutcome(trouble ?? space.checkInvariants())
  }
}
