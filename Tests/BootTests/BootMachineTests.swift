import XCTest

/// Strata comes up on small and large machines, old and new processors, either loader, either board.
final class BootMachineTests: XCTestCase {
  /// Memory that the host need not have: pages come when they are touched.
  func sparse(_ size: String, _ boot: Boot = Boot()) -> Boot {
    var boot = boot
    boot.memory = size
    boot.extra += [
      "-object", "memory-backend-ram,id=m,size=\(size),reserve=off", "-machine", "memory-backend=m",
    ]
    return boot
  }

  func comesUp(
    _ boot: Boot, file: StaticString = #filePath, line: UInt = #line
  )
    throws
  {
    let log = try boot.run("memmap; frames; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text, file: file, line: line)
    XCTAssertTrue(log.text.contains("Strata "), file: file, line: line)
    XCTAssertFalse(log.text.contains("FAULT"), log.text, file: file, line: line)
  }

  func testAMachineOf32MiBComesUp() throws { try comesUp(Boot(memory: "32M")) }
  func testAMachineOf256MiBComesUp() throws { try comesUp(Boot()) }
  func testAMachineOf4GiBComesUp() throws { try comesUp(sparse("4G")) }
  func testAMachineOf20GiBComesUpWithoutTheLargestPages() throws { try comesUp(sparse("20G")) }
  func testAMachineOf20GiBComesUpWithTheLargestPages() throws {
    try comesUp(sparse("20G", Boot(processor: "max")))
  }
  func testANewProcessorComesUpOnQ35() throws { try comesUp(Boot(processor: "max", board: "q35")) }
  func testAnOldProcessorComesUpOnQ35() throws { try comesUp(Boot(board: "q35")) }
  func testGrubLoadsTheKernel() throws { try comesUp(Boot(loader: .grub)) }
  func testGrubLoadsTheKernelOnQ35With20GiB() throws {
    try comesUp(sparse("20G", Boot(loader: .grub, processor: "max", board: "q35")))
  }
  func testGrubLoadsTheKernelInto32MiB() throws { try comesUp(Boot(loader: .grub, memory: "32M")) }

  func testAMachineThatIsTooSmallSaysSo() throws {
    let log = try Boot(memory: "2M").finish()
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("too small"), log.text)
  }

  func testAProcessorWithoutLongModeIsRefused() throws {
    let log = try Boot(processor: "qemu32").finish()
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("long mode"), log.text)
  }

  func testAProcessorWithoutNoExecuteIsRefused() throws {
    let log = try Boot(processor: "qemu64,-nx").finish()
    XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
    XCTAssertTrue(log.text.contains("NX"), log.text)
  }

  /// Every wait for a device ends. Strata names a missing device that it needs, within a second of the machine's
  /// time.
  func testADeviceThatIsMissingIsNamed() throws {
    let cases = [
      ("q35,pit=off", "qemu64", "no interval timer"), ("microvm,pit=off", "qemu64", "no interval timer"),
      ("q35,pic=off", "qemu64", "no 8259A interrupt controllers"),
      ("pc", "qemu64,-apic", "no local interrupt controller"),
    ]
    for (board, processor, words) in cases {
      var boot = Boot(processor: processor, board: board)
      let log = try boot.run("memmap")
      XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
      XCTAssertTrue(log.text.contains("a machine that Strata refuses"), log.text)
      XCTAssertTrue(log.text.replacingOccurrences(of: "\n            ", with: " ").contains(words), log.text)
      // Without the device that ends it at once, the machine halts, and its time stands still. A tenth of a second, as a
      // port that is read takes the time of many instructions on a real machine.
      (boot.hasExitDevice, boot.countsInstructions) = (false, true)
      let session = try Session(boot)
      session.expect("Stopped, exit status 37.")
      XCTAssertLessThan(try session.endedByMonitor(), 100_000_000, "nanoseconds on \(board), \(processor)")
    }
  }

  func testWithoutASerialPortCommandsRunAndTheStatusIsTheAnswer() throws {
    XCTAssertEqual(try Boot(hasSerialPort: false).run("frames").status, Boot.Status.success)
    XCTAssertEqual(try Boot(hasSerialPort: false).run("frame").status, Boot.Status.failed)
    // Without a port no person could ever type.
    XCTAssertEqual(try Boot(hasSerialPort: false).finish().status, Boot.Status.stopped)
  }

  func testWithoutAnExitDeviceItHaltsAndSaysSo() throws {
    let session = try Session(Boot(line: "run=frames", hasExitDevice: false))
    session.expect("as memmap took them")
    session.expect("No device at port 0xf4 ends this machine: it halts.")
  }

  /// Firmware that leaves the MTRRs off: nothing is left out for their sake, and `memmap` says so.
  func testAMachineWhoseMTRRsAreOffComesUp() throws {
    let log = try Boot(board: "microvm").run("memmap; memmap -j; frames -j; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertTrue(log.text.contains("The MTRRs are off: no memory is left out for its caching."), log.text)
    XCTAssertEqual(log.rows("memmap_rules").first?["mtrrs"] as? String, "off")
    XCTAssertTrue(log.text.contains("256 to 65535"), log.text)
  }

  func testBothLoadersGiveTheSameMachine() throws {
    let pvh = try Boot().run("memmap -j").rows("memmap")
    let grub = try Boot(loader: .grub).run("memmap -j").rows("memmap")
    XCTAssertFalse(pvh.isEmpty)
    XCTAssertEqual(pvh.count, grub.count)
  }
}
