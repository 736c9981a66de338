import ACPI
import XCTest

/// How a local APIC is reached, and what its command register is written with.
final class LocalAPICTests: XCTestCase {
  func testTheBaseRegisterGivesTheModeAndTheAddress() {
    let values: [(UInt64, APICIdentity.Addressing?, UInt64)] = [
      (0xfee0_0900, .xAPIC, 0xfee0_0000), (0xfee0_0800, .xAPIC, 0xfee0_0000),
      (0xfee0_0d00, .x2APIC, 0xfee0_0000),
      (0xfee0_0100, nil, 0xfee0_0000), (0xfee0_0500, nil, 0xfee0_0000), (0, nil, 0),
      (0xffff_ffff_ffff_ffff, .x2APIC, 0x000f_ffff_ffff_f000), (0x12_3456_7800, .xAPIC, 0x12_3456_7000),
    ]
    for (value, addressing, address) in values {
      XCTAssertEqual(LocalAPICBase(value).addressing, addressing, String(value, radix: 16))
      XCTAssertEqual(LocalAPICBase(value).address.rawValue, address, String(value, radix: 16))
    }
  }

  func testAModeIsChangedWithoutTouchingTheRest() {
    for start: UInt64 in [0xfee0_0100, 0xfee0_0900, 0xfee0_0d00] {
      XCTAssertEqual(LocalAPICBase(start).on(.xAPIC).rawValue, 0xfee0_0900)
      XCTAssertEqual(LocalAPICBase(start).on(.x2APIC).rawValue, 0xfee0_0d00)
      XCTAssertEqual(LocalAPICBase(start).off.rawValue, 0xfee0_0100)
    }
    let (off, xAPIC, x2APIC) = (
      LocalAPICBase(0xfee0_0100), LocalAPICBase(0xfee0_0900), LocalAPICBase(0xfee0_0d00)
    )
    // SDM vol. 3A, 11.12.5: every other change takes one write.
    XCTAssertFalse(x2APIC.canBecome(xAPIC))
    for (from, to) in [
      (off, xAPIC), (off, x2APIC), (xAPIC, x2APIC), (xAPIC, off), (x2APIC, off), (x2APIC, x2APIC),
    ] {
      XCTAssertTrue(from.canBecome(to))
    }
  }

  /// Table 11-6 of the SDM.
  func testAnX2APICHasAModelSpecificRegisterForEachOffset() {
    let numbers: [(UInt32, UInt32)] = [
      (0x20, 0x802), (0x80, 0x808), (0xb0, 0x80b), (0xf0, 0x80f), (0x300, 0x830), (0x320, 0x832),
      (0x350, 0x835),
      (0x360, 0x836), (0x370, 0x837), (0x380, 0x838), (0x390, 0x839), (0x3e0, 0x83e), (0x3f0, 0x83f),
    ]
    for (offset, number) in numbers { XCTAssertEqual(LocalAPICRegister(offset).number, number) }
  }

  func testACommandHasItsTargetInTheBitsOfItsMode() {
    let command = InterruptCommand(0x40e1, to: APICIdentity(254))
    XCTAssertEqual(command.upperHalf, 0xfe00_0000)
    XCTAssertEqual(command.whole, 0x0000_00fe_0000_40e1)
    XCTAssertEqual(InterruptCommand(0xc4500, to: APICIdentity(0x8000_012b)).whole, 0x8000_012b_000c_4500)
  }
}
