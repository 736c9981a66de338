import XCTest

/// The output of the commands, for a person and with `-j`.
final class BootCommandTests: XCTestCase {
  static let commands = [
    "memmap", "frames", "buddy", "map", "map 0x100000+2M", "pagetable", "pagetable 0xffffffff80100000",
    "vmem",
    "vmem kernel_va", "kmem", "vmstat -m", "whatis frame 300", "whatis 0xffff800000100000", "why 2M align=2M",
    "failures", "snapshot before", "diff before", "sysctl", "help",
  ]

  func testEveryCommandPrintsSomething() throws {
    let log = try Boot().run(Self.commands.joined(separator: "; "))
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    for command in Self.commands { XCTAssertTrue(log.text.contains("strata> \(command)\n"), command) }
    for line in log.text.split(separator: "\n") {
      XCTAssertLessThanOrEqual(line.count, 80, String(line))
      XCTAssertTrue(line.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f }, String(line))
    }
  }

  func testEveryCommandHasRowsForTools() throws {
    for command in Self.commands where command != "help" && !command.hasPrefix("snapshot") {
      let log = try Boot().run(
        command.hasPrefix("diff") ? "snapshot before; diff -j before" : insertJ(command))
      XCTAssertEqual(log.status, Boot.Status.success, log.text)
      var rows = 0
      for line in log.text.split(separator: "\n") where line.hasPrefix("{") {
        let row = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
        XCTAssertNotNil(row?["kind"], String(line))
        XCTAssertTrue(line.hasPrefix("{\"kind\":"), String(line))
        rows += 1
      }
      if command != "failures" { XCTAssertGreaterThan(rows, 0, command) }
    }
  }

  private func insertJ(_ command: String) -> String {
    var words = command.split(separator: " ").map(String.init)
    words.insert("-j", at: 1)
    return words.joined(separator: " ")
  }

  func testFramesOfAllRolesAddUp() throws {
    let log = try Boot().run("memmap -j; frames -j")
    let taken = log.rows("memmap").compactMap { $0["taken"] as? Int }.reduce(0, +)
    let roles = log.rows("frames").compactMap { $0["frames"] as? Int }.reduce(0, +)
    XCTAssertGreaterThan(taken, 60_000)
    XCTAssertEqual(taken, roles, log.text)
    XCTAssertEqual(log.rows("memmap_rules").first?["mtrrs"] as? String, "on", log.text)
    // A tunable decides on the first 64 KiB; frame 0 is never used.
    let more = try Boot(line: "vm.first_64k=on").run("memmap -j; sysctl vm.first_64k; selftest invariants")
    XCTAssertEqual(more.status, Boot.Status.success, more.text)
    XCTAssertEqual(more.rows("memmap").compactMap { $0["taken"] as? Int }.reduce(0, +), taken + 15, more.text)
  }

  func testAnUnknownCommandFailsWithAHint() throws {
    let log = try Boot().run("frame")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
    XCTAssertTrue(log.text.contains("Did you mean frames?"), log.text)
  }

  func testAnUnknownTunableFails() throws {
    let log = try Boot(line: "vm.nothing=3").run("memmap")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
    XCTAssertTrue(log.text.contains("vm.nothing"), log.text)
  }

  func testATourWithoutATraceSaysSoAndSucceeds() throws {
    let log = try Boot().run("tour")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
  }

  func testALogHoldsNoEscapes() throws {
    let log = try Boot(module: Boot.sample).run("tour")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertFalse(log.text.contains("\u{1b}"))
  }

  func testARangeAtTheEndOfAllAddressesIsRefusedNotAFault() throws {
    let log = try Boot().run("map 0xffff_ffff_ffff_ffff")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
    XCTAssertFalse(log.text.contains("FAULT"), log.text)
  }

  func testAddressesOfALargeMachineStayWhole() throws {
    var boot = Boot(memory: "20G")
    boot.extra = ["-object", "memory-backend-ram,id=m,size=20G,reserve=off", "-machine", "memory-backend=m"]
    let log = try boot.run("memmap; pagetable")
    XCTAssertTrue(log.text.contains("0x0000_0010_0000 0x0000_bffd_ffff"), log.text)
    XCTAssertTrue(log.text.contains("1048576 to 5505023"), log.text)
    XCTAssertTrue(log.text.contains("0xffff_8000_0010_0000 "), log.text)
    for line in log.text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
  }

  func testASmallMachineHasATourAndItsSelfTests() throws {
    let log = try Boot(memory: "32M", module: Boot.sample).run("tour; selftest")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertTrue(log.text.contains("left out"), log.text)
  }

  func testTwoThreadsStartWhenMemoryIsGone() throws {
    let log = try Boot(memory: "64M", processors: 2).run(
      "selftest threads; selftest threads; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertEqual(log.text.components(separatedBy: "threads       passed").count, 3, log.text)
  }

  func testACommandLineThatDoesNotFitIsRefused() throws {
    let log = try Boot(line: String(repeating: "x", count: 3000)).run("frames")
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("2,048 bytes"), log.text)
  }
}
