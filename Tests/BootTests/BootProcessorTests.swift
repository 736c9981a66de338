import XCTest

/// Several processors, threads, and faults that stop them.
final class BootProcessorTests: XCTestCase {
  private func machine(_ processors: Int) -> Boot {
    Boot(memory: "192M", processors: processors, line: "swap.ramdisk=64M color=0")
  }

  /// All come up, take turns, invalidate on request, and no page is lost on the way.
  private func work(_ processors: Int) throws {
    let log = try machine(processors).run(
      "dirty 110%; contig 2M; verify -j; cpus -j; threads -j; locks -j; dirty free; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertTrue(log.text.contains("\(processors) processor"), log.text)
    let verify = try XCTUnwrap(log.rows("verify").first, log.text)
    XCTAssertEqual(verify["wrong"] as? Int, 0)
    XCTAssertGreaterThan(try XCTUnwrap(verify["intact"] as? Int), 30_000)
    let rows = log.rows("cpu")
    XCTAssertEqual(rows.map { $0["cpu"] as? Int }, Array(0..<processors))
    XCTAssertEqual(Set(rows.map { $0["apic"] as? Int }).count, processors)
    for row in rows { XCTAssertGreaterThan(try XCTUnwrap(row["interrupts"] as? Int), 0) }
    let threads = log.rows("thread").compactMap { $0["name"] as? String }
    XCTAssertEqual(threads.filter { $0 == "idle" }.count, processors)
    for name in ["console", "ram disk", "page daemon", "laundry", "depot trim"] {
      XCTAssertTrue(threads.contains(name), "no \(name) in \(threads)")
    }
    // A thread that sleeps for its disk is woken on any processor that is idle.
    let switches = rows.compactMap { $0["switches"] as? Int }.reduce(0, +)
    XCTAssertGreaterThan(switches, 1000)
    XCTAssertGreaterThan(log.rows("lock").count, 10)
  }

  func testOneProcessorComesUp() throws { try work(1) }
  func testTwoProcessorsComeUp() throws { try work(2) }
  func testFourProcessorsComeUp() throws { try work(4) }
  func testEightProcessorsComeUp() throws { try work(8) }
  func testEightProcessorsComeUpWhenGrubLoadsTheKernel() throws {
    var boot = machine(8)
    boot.loader = .grub
    let log = try boot.run("cpus -j; threads -j")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(log.rows("cpu").count, 8)
  }

  private func bytes(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }
  /// A processor with a local APIC of this identity, enabled, as it is listed for an xAPIC and to an x2APIC (ACPI 6.4,
  /// 5.2.12.2 and 5.2.12.12).
  private func local(_ identity: UInt8, flags: UInt32 = 1) -> [UInt8] { [0, 8, 0, identity] + bytes(flags) }
  private func local2(_ identity: UInt32) -> [UInt8] {
    [9, 16, 0, 0] + bytes(identity) + bytes(1) + bytes(0)
  }

  /// The firmware's table of processors with these entries.
  private func table(_ entries: [[UInt8]]) -> Data {
    let content = entries.flatMap { $0 }
    var table = Array("APIC".utf8) + bytes(UInt32(44 + content.count)) + [1, 0]
    table += Array("STRATANOANSWER".utf8) + bytes(1) + Array("TEST".utf8) + bytes(1)
    table += bytes(0xfee0_0000) + bytes(1) + content
    table[9] = 0 &- table.reduce(0, &+)
    return Data(table)
  }

  /// Boots three processors by a table with these entries, works on those that come up, and answers the log. The
  /// pages that are held are those of threads and processors that there are.
  private func log(of entries: [[UInt8]], runs identities: Set<Int>) throws -> String {
    var boot = machine(3)
    boot.loader = .grub
    boot.processorTable = table(entries)
    let log = try boot.run(
      "cpus -j; cpus; frames -j; threads -j; selftest invariants; dirty 110%; verify -j")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(log.rows("cpu").first?["apic"] as? Int, 0, "the boot processor comes first")
    XCTAssertEqual(Set(log.rows("cpu").compactMap { $0["apic"] as? Int }), identities, log.text)
    XCTAssertEqual(log.rows("verify").first?["wrong"] as? Int, 0)
    assertNothingIsLeftOver(log)
    return log.text
  }

  /// A thread has 8 pages of stacks, but the console's, which runs on the image's; a processor has 16 more, but the
  /// first. Of wired pages a processor has 2, but the first; the page at which processors start stays in use while
  /// one that has not answered may still come to it.
  private func assertNothingIsLeftOver(_ log: Boot.Log, line: UInt = #line) {
    func frames(_ role: String) -> Int? {
      log.rows("frames").first { $0["role"] as? String == role }?["frames"] as? Int
    }
    let (threads, processors) = (log.rows("thread").count, log.rows("cpu").count)
    // Up to two stacks are kept for threads that start when memory is gone.
    let kept = (frames("stack") ?? -1) - 8 * (threads - 1) - 16 * (processors - 1)
    XCTAssertTrue([0, 8, 16].contains(kept), log.text, line: line)
    let startPages = log.text.contains("did not come up") ? 1 : 0
    XCTAssertEqual(frames("wired"), 2 * (processors - 1) + startPages, log.text, line: line)
  }

  /// A processor that the firmware names but that does not answer is left out, and the others come up. Entries that
  /// name no processor are none that failed; those that an xAPIC can't reach are counted apart.
  func testProcessorsThatDoNotAnswerAreLeftOut() throws {
    let text = try log(
      of: [0, 7, 1, 9, 2, 254, 255].map { local($0) } + [
        local2(0x3c3d_3e3f), local2(0x3c3d_3e3f), local2(.max),
      ],
      runs: [0, 1, 2])
    XCTAssertTrue(text.contains("! 3 processors did not come up; cpus shows the others."), text)
    XCTAssertTrue(text.contains("! 3 processors of ACPI's list did not come up."), text)
    XCTAssertTrue(text.contains("! 1 processor can't be reached by xAPIC; cpus shows the others."), text)
    XCTAssertTrue(text.contains("! 1 processor of ACPI's list can't be reached by xAPIC."), text)
  }

  func testTheBootProcessorIsFirstWhereverItsEntryIs() throws {
    let text = try log(of: [2, 200, 1, 0].map { local($0) }, runs: [0, 1, 2])
    XCTAssertTrue(text.contains("! 1 processor did not come up; cpus shows the others."), text)
  }

  func testATableThatLeavesTheBootProcessorOutIsNotUsed() throws {
    let text = try log(of: [local(1), local(2), local(0, flags: 0)], runs: [0])
    XCTAssertTrue(text.contains("1 processor, by GRUB"), text)
    XCTAssertTrue(
      text.contains("! ACPI's list of processors: it leaves out the processor that runs, so it is not used."),
      text)
    XCTAssertFalse(text.contains("did not come up"), text)
  }

  /// Of the memory that was free when the other processors were started, they have taken no more than half, and the
  /// last one's part. A processor takes 2 pages of its own, 16 of stacks and 8 of its idle thread; what was free then
  /// is still free, or has become a thread's, a table or kmem's.
  private func assertHalfOfMemoryIsLeft(_ log: Boot.Log, line: UInt = #line) throws {
    var frames: [String: Int] = [:]
    for row in log.rows("frames") {
      frames[try XCTUnwrap(row["role"] as? String)] = try XCTUnwrap(row["frames"] as? Int)
    }
    let later = try ["free", "slab", "kmem pages", "page table", "tags"].map {
      try XCTUnwrap(frames[$0], $0)
    }
    let (processors, threads) = (log.rows("cpu").count, log.rows("thread").count)
    let services = 8 * (threads - processors - 1)
    let (each, others) = (2 + 16 + 8, processors - 1)
    let wasFree = each * others + services + later.reduce(0, +)
    XCTAssertLessThan(2 * each * (others - 1), wasFree, log.text, line: line)
    XCTAssertGreaterThan(frames["free"] ?? 0, 0, log.text, line: line)
  }

  /// Processors that there is too little memory for leave enough of it to work.
  func testASmallMachineStartsAsManyProcessorsAsItsMemoryHolds() throws {
    var boot = Boot(memory: "4608K", processors: 24, line: "color=0")
    var log = try boot.run("cpus -j; cpus; frames -j; threads -j; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertTrue(log.text.contains("of ACPI's list did not start for lack of memory."), log.text)
    XCTAssertGreaterThan(log.rows("cpu").count, 1, log.text)
    assertNothingIsLeftOver(log)
    try assertHalfOfMemoryIsLeft(log)
    boot = Boot(memory: "20M", processors: 8, line: "color=0")
    log = try boot.run("cpus -j; frames -j; threads -j; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(log.rows("cpu").count, 8, log.text)
    assertNothingIsLeftOver(log)
    try assertHalfOfMemoryIsLeft(log)
  }

  /// All layers at once, by all processors, for a minute.
  func testProcessorsUnderStressKeepAllInvariants() throws {
    let log = try machine(8).run("selftest -j smp 60; selftest invariants; locks -j")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    let row = try XCTUnwrap(log.rows("smp").first, log.text)
    XCTAssertEqual(row["processors"] as? Int, 8)
    XCTAssertEqual(row["verdict"] as? String, "held", log.text)
    XCTAssertGreaterThanOrEqual(try XCTUnwrap(row["seconds"] as? Int), 60)
    for what in ["exchanged", "remapped", "reads", "pages", "visitors"] {
      XCTAssertGreaterThan(try XCTUnwrap(row[what] as? Int), 100, what)
    }
  }

  func testAFaultNamesWhatTheOthersDid() throws {
    let log = try machine(3).run("fault null")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("exit status 37"), log.text)
    // The console's thread may run on any of them.
    let others = (0..<3).filter { !log.text.contains("cpu \($0), thread console") }
    XCTAssertEqual(others.count, 2, log.text)
    for cpu in others {
      XCTAssertTrue(log.text.contains("cpu \(cpu)     thread idle, in "), log.text)
    }
  }

  /// Faults that several processors have at the same time are one whole report: it lists the others, each once.
  func testFaultsOnAllProcessorsAreOneReport() throws {
    let kinds = [
      ("nmi", "FAULT  non-maskable interrupt", "exception 2, error code 0x0000"),
      ("everywhere", "FAULT  precondition failed", "a fault on all processors at once"),
    ]
    for (kind, title, what) in kinds {
      let log = try machine(4).run("fault \(kind)")
      XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
      let lines = log.text.split(separator: "\n")
      XCTAssertEqual(lines.filter { $0.contains("FAULT") }.count, 1, log.text)
      XCTAssertTrue(log.text.contains(title), log.text)
      XCTAssertTrue(lines.contains { $0 == "  what      \(what)" }, log.text)
      let reporters = (0..<4).filter { cpu in
        lines.contains { $0.contains("FAULT") && $0.contains("cpu \(cpu), thread ") }
      }
      XCTAssertEqual(reporters.count, 1, log.text)
      for cpu in (0..<4) where !reporters.contains(cpu) {
        XCTAssertEqual(lines.filter { $0.hasPrefix("  cpu \(cpu)     thread ") }.count, 1, log.text)
      }
      // A line is folded at 80 columns, wherever that is.
      XCTAssertTrue(
        log.text.replacingOccurrences(of: "\n            ", with: " ").contains("a fault of its own"),
        log.text)
      XCTAssertEqual(lines.filter { $0.contains("Stopped, exit status 37.") }.count, 1, log.text)
      XCTAssertTrue(lines.last?.contains("Stopped, exit status 37.") == true, log.text)
    }
  }

  private func stops(_ kind: String, _ words: String) throws {
    let log = try machine(2).run("fault \(kind)")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    for words in ["FAULT", words, "by way of", "  cpu "] {
      XCTAssertTrue(log.text.contains(words), "no \"\(words)\" in\n\(log.text)")
    }
  }
  func testALockTakenAgainstItsRankIsReported() throws {
    try stops("lock-order", "a spin lock was acquired against its rank")
  }
  func testASleepWithASpinLockIsReported() throws {
    try stops("locked-sleep", "a sleep with a spin lock held")
  }
  func testAPageFaultWithASpinLockIsReported() throws {
    try stops("locked-fault", "a page fault with a spin lock held")
  }

  func testASleepWithAPageWindowOpenIsReported() throws {
    try stops("window-sleep", "a thread sleeps with a page window open, on processor: ")
  }
  func testAPageFaultWithAPageWindowOpenIsReported() throws {
    try stops("window-fault", "a page fault with a page window open")
  }
  func testASecondPageWindowAtOneDepthIsReported() throws {
    try stops("window-twice", "a page window was opened twice at one depth: 0xffff_f000_")
  }

  /// Each processor's windows show its own frames, to two threads that share it and to an interrupt in one of them.
  func testPageWindowsOfAllProcessorsShowTheirOwnFrames() throws {
    for count in [1, 4] {
      let log = try machine(count).run("selftest windows; selftest windows; selftest invariants")
      XCTAssertEqual(log.status, Boot.Status.success, log.text)
      XCTAssertEqual(log.text.components(separatedBy: "windows       passed").count, 3, log.text)
    }
  }

  func testAProcessorThatHangsIsNoticedByItsNeighbour() throws {
    let log = try machine(2).run("fault hang; watchdog on; fault hang")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("Type: watchdog on"), log.text)
    XCTAssertTrue(log.text.contains("FAULT  no progress"), log.text)
    XCTAssertTrue(log.text.contains("TriggeredFault.trigger()"), log.text)
  }

  func testTheOnlyProcessorThatHangsIsNoticedByTheDevice() throws {
    var boot = machine(1)
    boot.extra = ["-device", "ib700", "-action", "watchdog=inject-nmi"]
    let log = try boot.run("watchdog on; fault hang")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("FAULT  no progress"), log.text)
  }
}
