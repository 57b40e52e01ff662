// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel, image, QEMU, guest run: the outside world.
