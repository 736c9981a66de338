import XCTest

/// Several processors, threads, and what stops them.
final class ProcessorTests: XCTestCase {
  private func machine(_ processors: Int) -> Boot {
    Boot(memory: "192M", processors: processors, line: "swap.ramdisk=64M color=0")
  }

  /// All come up, take turns, forget what they are told to, and no page is lost on the way.
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
    // A thread that sleeps for its disk is woken where there is room.
    let switches = rows.compactMap { $0["switches"] as? Int }.reduce(0, +)
    XCTAssertGreaterThan(switches, 1000)
    XCTAssertGreaterThan(log.rows("lock").count, 10)
  }

  func testOne() throws { try work(1) }
  func testTwo() throws { try work(2) }
  func testFour() throws { try work(4) }
  func testEight() throws { try work(8) }
  func testEightByGrub() throws {
    var boot = machine(8)
    boot.loader = .grub
    let log = try boot.run("cpus -j; threads -j")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(log.rows("cpu").count, 8)
  }

  /// A table of processors with local APICs of these identities (ACPI 6.5, 5.2.12).
  private func table(_ identities: [UInt8]) -> Data {
    func bytes(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    var table = Array("APIC".utf8) + bytes(UInt32(44 + 8 * identities.count)) + [1, 0]
    table += Array("STRATANOANSWER".utf8) + bytes(1) + Array("TEST".utf8) + bytes(1)
    table += bytes(0xfee0_0000) + bytes(1)
    for (i, identity) in identities.enumerated() { table += [0, 8, UInt8(i), identity] + bytes(1) }
    table[9] = 0 &- table.reduce(0, &+)
    return Data(table)
  }

  /// Who is named by the firmware but does not answer is left out, and keeps nobody else from coming up.
  func testProcessorsThatDoNotAnswerAreLeftOut() throws {
    for identities: [UInt8] in [[0, 7, 1, 9, 2, 254], [2, 200, 1, 0]] {
      var boot = machine(3)
      boot.loader = .grub
      boot.processorTable = table(identities)
      let mute = identities.count - 3
      let log = try boot.run("cpus -j; cpus; selftest invariants; dirty 110%; verify -j")
      XCTAssertEqual(log.status, Boot.Status.success, log.text)
      XCTAssertEqual(Set(log.rows("cpu").compactMap { $0["apic"] as? Int }), [0, 1, 2], log.text)
      let words = mute == 1 ? "1 processor" : "\(mute) processors"
      XCTAssertTrue(log.text.contains("! \(words) did not come up; cpus shows the others."), log.text)
      XCTAssertTrue(log.text.contains("! \(words) of ACPI's list did not come up."), log.text)
      XCTAssertEqual(log.rows("verify").first?["wrong"] as? Int, 0)
    }
  }

  /// All floors at once, by all processors, for a minute.
  func testStress() throws {
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

  private func stops(_ kind: String, _ words: String) throws {
    let log = try machine(2).run("fault \(kind)")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    for words in ["FAULT", words, "by way of", "  cpu "] {
      XCTAssertTrue(log.text.contains(words), "no \"\(words)\" in\n\(log.text)")
    }
  }
  func testALockAgainstItsRank() throws { try stops("lock-order", "a spin lock was taken against its rank") }
  func testASleepWithASpinLock() throws { try stops("locked-sleep", "a sleep with a spin lock held") }
  func testAFaultWithASpinLock() throws { try stops("locked-fault", "a page fault with a spin lock held") }

  func testAProcessorThatHangsIsNoticedByItsNeighbour() throws {
    let log = try machine(2).run("fault hang; watchdog on; fault hang")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("Type: watchdog on"), log.text)
    XCTAssertTrue(log.text.contains("FAULT  no progress"), log.text)
    XCTAssertTrue(log.text.contains("Provocation.provoke()"), log.text)
  }

  func testTheOnlyProcessorThatHangsIsNoticedByTheDevice() throws {
    var boot = machine(1)
    boot.extra = ["-device", "ib700", "-action", "watchdog=inject-nmi"]
    let log = try boot.run("watchdog on; fault hang")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("FAULT  no progress"), log.text)
  }
}
